"""`qwenctl events`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def events(
    gpu: GpuOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many of the last.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print the history: every transition, demand, block and cloud call.

    With --json one object on each line. With several GPUs and no --gpu it is
    the history of all, and each line names its GPU.

    \b
    Examples:
      qwenctl events -n 50
      qwenctl events --follow
      qwenctl events --json | jq -r 'select(.kind == "transition") | .to'
    """
    from qwenctl.cli.use import status as body

    body.events(gpu, count, follow, json, config)
