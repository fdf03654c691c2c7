"""`qwenctl why`."""

from __future__ import annotations

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def why(gpu: GpuOption = None, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say who keeps the GPU on or off, and what happens next.

    With several GPUs and no --gpu it says so of each, and --json prints them
    in an object "gpus".

    \b
    Examples:
      qwenctl why
      qwenctl why --json | jq -r '.reasons[].text'
    """
    from qwenctl.cli.use import status as body

    body.why(gpu, json, config)
