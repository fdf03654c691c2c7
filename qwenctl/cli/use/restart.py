"""`qwenctl restart`: the service again, without the instance's boot."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption, Target, print_json, user
from qwenctl.errors import ExitCode, UserError

__all__ = ["restart"]


def restart(
    service: Annotated[
        str | None, typer.Argument(help="Name of the service; default: the first one.")
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
    from qwenctl.protocol.messages import Command

    target = Target.find(gpu, config)
    if (agent and (stop or every or service)) or (every and (service or not stop)):
        raise typer.BadParameter(
            "--agent stands alone, --all goes with --stop and without a service"
        )
    if agent:
        command, name, doing = Command(verb="reload"), "", "the agent begins anew"
    elif every:
        command, name, doing = Command(verb="drain"), "", "every service is being stopped"
    else:
        name = _service(target, service)
        verb = "stop-service" if stop else "restart-service"
        command = Command(verb=verb, service=name)
        doing = f"{name} is being {'stopped' if stop else 'restarted'}"
    if not target.gpu.agent:
        raise UserError(
            f"{target.name} has no agent (agent = false) that could do this", ExitCode.UNAVAILABLE
        )
    if not target.store.command(target.name, command, actor=user()):
        raise UserError(
            f"{target.name} has no node that could do this: it is not running", ExitCode.UNAVAILABLE
        )
    if json:
        print_json({"gpu": target.name, "service": name, "verb": command.verb, "outcome": "asked"})
    else:
        print(f"{target.name}: {doing}; see `qwenctl logs --follow`")
        if stop:
            print(
                "It stays so until the instance or the agent starts again; `qwenctl block` keeps the "
                "GPU off."
            )


def _service(target: Target, service: str | None) -> str:
    names = [configured.name for configured in target.gpu.service]
    name = service or (names[0] if names else "")
    if name not in names:
        raise typer.BadParameter(
            f"no service named {name!r}; configured: {', '.join(names) or 'none'}"
        )
    return name
