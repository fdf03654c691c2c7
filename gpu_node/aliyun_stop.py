"""Run `gpu_node.selfstop.aliyun` under the module name that node settings contain.

The name stays: docs/decisions/0008-names-that-outlive-the-move.md.
"""

import sys

from gpu_node.selfstop.aliyun import main

if __name__ == "__main__":
    sys.exit(main())
