"""`qwenctl config`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, JsonOption

app = typer.Typer(no_args_is_help=True, help="Show and check the configuration.")


@app.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the configuration in force, defaults included, secrets masked.

    \b
    Examples:
      qwenctl config show
      QWENCTL_PROXY__LISTEN=127.0.0.1:9000 qwenctl config show --json
    """
    from qwenctl.cli.setup import config as body

    body.show(config, json)


@app.command()
def validate(
    file: Annotated[
        str | None, typer.Argument(help="The file to check.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check the configuration; one line for each mistake, exit code 2 if there is one.

    It refuses what `qwenctl serve` would refuse, and starts nothing.

    \b
    Examples:
      qwenctl config validate
      qwenctl config validate ./qwenctl.toml
    """
    from qwenctl.cli.setup import config as body

    body.validate(file, config, json)


@app.command()
def path(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print which config file is used; exit code 2 if there is none.

    \b
    Example:
      $EDITOR "$(qwenctl config path)"
    """
    from qwenctl.cli.setup import config as body

    body.path(config, json)


@app.command()
def schema(json: JsonOption = False) -> None:  # noqa: ARG001
    """Print the JSON Schema of the config file, for editors.

    \b
    Example:
      qwenctl config schema > qwenctl.schema.json
    """
    from qwenctl.cli.setup import config as body

    body.schema()
