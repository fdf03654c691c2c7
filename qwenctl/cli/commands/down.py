"""`qwenctl down`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import (
    BecauseOption,
    ConfigOption,
    DryRunOption,
    GpuOption,
    JsonOption,
    NoWaitOption,
    TimeoutOption,
)


def down(
    gpu: GpuOption = None,
    every: Annotated[bool, typer.Option("--all", help="Every GPU, at the same time.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Cut running work, too.")] = False,
    because: BecauseOption = "",
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Give up the demand for the GPU and wait until it is off.

    Running work is finished first, unless --now. The next request may wake it
    again; `qwenctl block` forbids that.

    \b
    Examples:
      qwenctl down
      qwenctl down --all
      qwenctl down --now --because "wrong model"
    """
    if every and gpu:
        raise typer.BadParameter("--all is every GPU, and --gpu one: give one of them")
    from qwenctl.cli.use import down as body

    if every:
        body.down_all(now, because, no_wait, timeout, dry_run, json, config)
        return
    body.down(gpu, now, because, no_wait, timeout, dry_run, json, config)
