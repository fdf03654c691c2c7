"""`qwenctl.cli.demo.sample`, by the name that config files call it which `qwenctl init` wrote."""

import runpy

if __name__ == "__main__":
    runpy.run_module("qwenctl.cli.demo.sample", run_name="__main__")
