"""`gpu_node.selfstop.aliyun`, by the name that ``power_off_command`` has in written settings."""

import sys

from gpu_node.selfstop.aliyun import main

if __name__ == "__main__":
    sys.exit(main())
