"""`qwenctl logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def logs(
    gpu: GpuOption = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=2000, help="How many of the last lines.")
    ] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print what the node's agent and service wrote: the boot log.

    \b
    Examples:
      qwenctl logs -n 50
      qwenctl logs --follow
    """
    from qwenctl.cli.use import status as body

    body.logs(gpu, count, follow, json, config)
