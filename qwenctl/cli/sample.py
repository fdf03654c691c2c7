"""Run `qwenctl.cli.demo.sample` under the module name that config files contain.

The name stays: docs/decisions/0008-names-that-outlive-the-move.md.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("qwenctl.cli.demo.sample", run_name="__main__")
