"""`qwenctl access`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import JsonOption

app = typer.Typer(no_args_is_help=True, help="Make a password hash or an API key.")


@app.command("hash-password")
def hash_password(json: JsonOption = False) -> None:
    """Hash the shared password for access.password_hash (argon2id).

    Asks for the password, or reads it from standard input.

    \b
    Examples:
      qwenctl access hash-password
      pass show qwenctl | qwenctl access hash-password
    """
    from qwenctl.cli.setup import access as body

    body.hash_password(json)


@app.command("new-key")
def new_key(
    name: Annotated[str, typer.Argument(help="Who uses the key; shown in `why`.")],
    json: JsonOption = False,
) -> None:
    """Make an API key. It is shown once; the config gets only its hash.

    \b
    Examples:
      qwenctl access new-key laptop
      curl -H "Authorization: Bearer qk_…" https://gpu.example.com/v1/models
    """
    from qwenctl.cli.setup import access as body

    body.new_key(name, json)
