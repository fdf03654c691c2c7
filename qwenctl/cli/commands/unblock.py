"""`qwenctl unblock`."""

from __future__ import annotations

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def unblock(gpu: GpuOption = None, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Lift every block; the next demand may wake the GPU again.

    \b
    Example:
      qwenctl unblock
    """
    from qwenctl.cli.use import down as body

    body.unblock(gpu, json, config)
