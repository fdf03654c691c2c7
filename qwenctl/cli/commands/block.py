"""`qwenctl block`."""

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
    duration_option,
)


def block(
    gpu: GpuOption = None,
    for_: Annotated[
        float | None, duration_option("--for", help="How long; default: until `qwenctl unblock`.")
    ] = None,
    because: BecauseOption = "",
    now: Annotated[bool, typer.Option("--now", help="Cut running work, too.")] = False,
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Forbid the GPU to be on, for a time or until unblocked.

    Running work is finished first, unless --now.

    \b
    Examples:
      qwenctl block --for 2h --because "driver update"
      qwenctl block --now
    """
    from qwenctl.cli.use import down as body

    body.block(gpu, for_, because, now, no_wait, timeout, dry_run, json, config)
