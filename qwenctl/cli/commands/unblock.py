"""`qwenctl unblock`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def unblock(
    gpu: GpuOption = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Also forget an instance that the settings no longer name: it is off, or not yours.",
        ),
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Lift every block; the next demand may wake the GPU again.

    \b
    Example:
      qwenctl unblock
    """
    from qwenctl.cli.use import down as body

    body.unblock(gpu, forget, json, config)
