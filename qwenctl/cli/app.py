"""Build the Typer application from the command modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from qwenctl.cli.common import context

COMMANDS = {
    "init": "commands.init",
    "up": "commands.up",
    "down": "commands.down",
    "block": "commands.block",
    "unblock": "commands.unblock",
    "status": "commands.status",
    "why": "commands.why",
    "events": "commands.events",
    "logs": "commands.logs",
    "restart": "commands.restart",
    "prewarm": "commands.prewarm",
    "serve": "commands.serve",
    "service": "commands.service",
    "demo": "commands.demo",
    "config": "commands.config",
    "access": "commands.access",
    "permissions": "commands.permissions",
    "provision": "commands.provision",
    "doctor": "commands.doctor",
    "node": "commands.node",
    "import": "commands.import_",
}
"""Command → its module, in the order of ``--help``. The module has a function of that name, or an
``app`` with subcommands."""


def make_app(args: Sequence[str]) -> typer.Typer:
    """Return the application for these arguments.

    It has only the command that they begin with: building all takes longer than most commands run.
    """
    app = typer.Typer(
        name="qwenctl",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # the same help in a terminal, a pipe and the docs, and no Rich
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    wanted = args[:1] if args and args[0] in COMMANDS else COMMANDS
    modules = {name: import_module(f"qwenctl.cli.{COMMANDS[name]}") for name in wanted}
    single = {name: found for name in modules if (found := getattr(modules[name], name, None))}
    groups = {name: modules[name].app for name in modules if name not in single}
    if list(args[:1]) in (["--help"], ["-h"]):
        for name, command in (single | groups).items():
            app.command(name)(_summary(command))
        return app
    for name, function in single.items():
        app.command(name)(function)
    for name, group in groups.items():
        app.add_typer(group, name=name)
    return app


def _summary(command: Callable[..., None] | typer.Typer) -> Callable[[], None]:
    """Return a command without its options, which take a third of the time to build.

    The overview shows only its name and first sentence.
    """

    def shown() -> None: ...

    shown.__doc__ = command.__doc__
    if isinstance(command, typer.Typer):
        callback = command.registered_callback
        shown.__doc__ = callback.callback.__doc__ if callback and callback.callback else None
        shown.__doc__ = shown.__doc__ or str(command.info.help)
    return shown


def _version(value: bool) -> None:
    if value:
        from qwenctl.lib.version import full_version

        print(f"qwenctl {full_version()}")
        raise typer.Exit


def _root(
    config: context.ConfigOption = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A GPU in the cloud that sleeps until somebody needs it.

    \b
    First steps:
      qwenctl demo            try the whole thing on this machine
      qwenctl init            write a config file
      qwenctl serve           run the proxy that wakes the GPU
      qwenctl up              wake it now
      qwenctl why             who keeps it on or off, and what happens next

    \b
    Exit codes: 0 ok, 1 error, 2 usage or config, 3 no capacity, 4 denied,
    5 timeout, 6 failed to come up, 7 blocked, 8 Redis or proxy unreachable,
    130 interrupted.
    """
    context.use_config(config)
