"""`qwenctl restart`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption, service_names


def restart(
    service: Annotated[
        str | None,
        typer.Argument(
            help="Name of the service; default: the first one.", autocompletion=service_names
        ),
    ] = None,
    gpu: GpuOption = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop it and do not start it again.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every service; only with --stop.")] = False,
    agent: Annotated[
        bool,
        typer.Option(
            "--agent",
            help="Have the agent read its settings anew. Containers run on, commands are restarted.",
        ),
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Restart a service on the running instance, for one that hangs.

    The agent gets the word with its next heartbeat (a few seconds). Running generations are cut.

    What --stop stops stays so until the instance or the agent starts again: after timing.load the
    GPU counts as failed, and while somebody needs it it is stopped and started anew.
    `qwenctl block` keeps it off.

    \b
    Examples:
      qwenctl restart
      qwenctl restart webui --gpu main
      qwenctl restart --stop vllm
      qwenctl restart --agent
    """
    from qwenctl.cli.use import restart as body

    body.restart(service, gpu, stop, every, agent, json, config)
