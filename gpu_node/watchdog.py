"""`gpu_node.selfstop.watchdog`, by the name that installed systemd units call it."""

import sys

from gpu_node.selfstop.watchdog import main

if __name__ == "__main__":
    sys.exit(main())
