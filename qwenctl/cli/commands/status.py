"""`qwenctl status`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def status(
    gpu: GpuOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what each GPU is doing and who uses it.

    \b
    Examples:
      qwenctl status
      qwenctl status --watch
      qwenctl status --json | jq -r .gpus.main.phase
    """
    from qwenctl.cli.use import status as body

    body.status(gpu, watch, json, config)
