"""`qwenctl restart`: restart a service without booting the instance."""

from __future__ import annotations

import typer

from qwenctl.cli.common.context import Target, print_json, user
from qwenctl.errors import UserError
from qwenctl.protocol.messages import Command


def restart(
    service: str | None,
    gpu: str | None,
    stop: bool,
    every: bool,
    agent: bool,
    json: bool,
    config: str | None,
) -> None:
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
        raise UserError(f"{target.name} has no agent (agent = false) that could do this")
    if not target.store.command(target.name, command, actor=user()):
        raise UserError(
            f"{target.name} is not running, so no node could do this; {target.command('up')} starts it"
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
