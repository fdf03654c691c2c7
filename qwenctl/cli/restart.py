"""`qwenctl restart`: the service again, without the instance's boot."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.context import ConfigOption, GpuOption, JsonOption, Target, print_json, user
from qwenctl.errors import ExitCode, UserError

__all__ = ["restart"]


class _NoNode(UserError):
    exit_code = ExitCode.UNAVAILABLE


def restart(
    service: Annotated[
        str | None, typer.Argument(help="Name of the service; default: the first one.")
    ] = None,
    gpu: GpuOption = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Restart a service on the running instance, for one that hangs.

    The agent gets the word with its next heartbeat (a few seconds). Running generations are cut.

    \b
    Examples:
      qwenctl restart
      qwenctl restart webui --gpu main
    """
    from qwenctl.wire import Command

    target = Target.find(gpu, config)
    names = [configured.name for configured in target.gpu.service]
    name = service or (names[0] if names else "")
    if name not in names:
        raise typer.BadParameter(
            f"no service named {name!r}; configured: {', '.join(names) or 'none'}"
        )
    command = Command(verb="restart-service", service=name)
    if not target.store.command(target.name, command, actor=user()):
        raise _NoNode(f"{target.name} has no node that could restart {name}: it is not running")
    if json:
        print_json({"gpu": target.name, "service": name, "outcome": "asked"})
    else:
        print(f"{target.name}: {name} is being restarted; see `qwenctl logs --follow`")
