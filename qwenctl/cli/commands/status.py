"""`qwenctl status`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption, gpu_names


def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[GPU]", help="Say all of this GPU.", autocompletion=gpu_names),
    ] = None,
    gpu: GpuOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show changes until Ctrl-C.")
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what each GPU is doing and who uses it.

    Several GPUs get a line each; with a name it is the long form.

    \b
    Examples:
      qwenctl status
      qwenctl status main
      qwenctl status --watch
      qwenctl status --json | jq -r .gpus.main.phase
    """
    if name and gpu:
        raise typer.BadParameter("give the GPU once: as a name, or with --gpu")
    from qwenctl.cli.use import status as body

    body.status(name or gpu, watch, json, config)
