"""`qwenctl service`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, JsonOption

app = typer.Typer(no_args_is_help=True, help="Run the proxy as a systemd service of this machine.")

UserOption = Annotated[
    bool, typer.Option("--user", help="A service of your own instead of the system's.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]


@app.command()
def install(
    user: UserOption = False,
    run_as: Annotated[
        str,
        typer.Option("--run-as", metavar="NAME", help="The system's user for it, made if missing."),
    ] = "qwenctl",
    start: Annotated[bool, typer.Option(help="Start it, too.")] = True,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Write the unit, enable and start it. Run it again after an upgrade or a change of settings.

    \b
    Examples:
      sudo qwenctl service install --config /etc/qwenctl/qwenctl.toml
      qwenctl service install --user
      qwenctl service install --dry-run
    """
    from qwenctl.cli.setup import service as body

    body.install(user, run_as, start, dry_run, config)


@app.command()
def status(user: UserOption = False, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Does it run, and at each boot? Ends with 0 only if it runs.

    \b
    Examples:
      qwenctl service status
      qwenctl service status --user --json
    """
    from qwenctl.cli.setup import service as body

    raise typer.Exit(body.status(user, json, config))


@app.command()
def uninstall(user: UserOption = False, dry_run: DryRunOption = False) -> None:
    """Stop the service and remove its unit. Settings and state stay.

    \b
    Examples:
      sudo qwenctl service uninstall
      qwenctl service uninstall --user --dry-run
    """
    from qwenctl.cli.setup import service as body

    body.uninstall(user, dry_run)
