"""Run `gpu_node.selfstop.watchdog` under the module name that installed systemd units contain.

The name stays: docs/decisions/0008-names-that-outlive-the-move.md.
"""

import sys

from gpu_node.selfstop.watchdog import main

if __name__ == "__main__":
    sys.exit(main())
