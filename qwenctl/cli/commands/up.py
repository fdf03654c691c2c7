"""`qwenctl up`."""

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


def up(
    gpu: GpuOption = None,
    for_: Annotated[
        float | None,
        duration_option("--for", help="Keep it on this long, counted from when it is ready."),
    ] = None,
    because: BecauseOption = "",
    no_wait: NoWaitOption = False,
    timeout: TimeoutOption = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="After a failure go on trying until --timeout.")
    ] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Wake the GPU, wait until it is ready, and print its address.

    Without --for it stays on for at least one idle timeout, longer while it is used. Ctrl-C stops the
    waiting, not the wake.

    \b
    Examples:
      qwenctl up
      qwenctl up --for 2h --because "demo for the team"
      qwenctl up --timeout 10m --json

    \b
    Exit codes: 0 ready, 3 no capacity, 4 denied, 5 timeout, 6 failed to come up,
    7 blocked, 130 Ctrl-C.
    """
    from qwenctl.cli.use import up as body

    body.up(gpu, for_, because, no_wait, timeout, retry, dry_run, json, config)
