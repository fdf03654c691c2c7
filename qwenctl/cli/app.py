"""All commands in one place. The modules are light; they import what they need when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli import access, context, demo, power, restart, serve, settings, setup, show

__all__ = ["app"]

app = typer.Typer(
    name="qwenctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the same in a terminal, a pipe and the docs, and at once
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from qwenctl import __version__

        print(f"qwenctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    config: context.ConfigOption = None,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
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


app.command()(setup.init)
app.command()(power.up)
app.command()(power.down)
app.command()(power.block)
app.command()(power.unblock)
app.command()(show.status)
app.command()(show.why)
app.command()(show.events)
app.command()(show.logs)
app.command()(restart.restart)
app.command()(serve.serve)
app.command()(demo.demo)
app.add_typer(settings.app, name="config")
app.add_typer(access.app, name="access")
