"""`qwenctl access`: secrets for the config file, which keeps only their hashes."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import JsonOption, print_json

__all__ = ["app"]

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
    import sys

    from qwenctl.errors import ConfigError

    if sys.stdin.isatty():
        import getpass

        password = getpass.getpass("Password: ", stream=sys.stderr)
        if password != getpass.getpass("Again: ", stream=sys.stderr):
            raise ConfigError("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ConfigError("the password is empty")
    from argon2 import PasswordHasher

    digest = PasswordHasher().hash(password)
    if json:
        print_json({"hash": digest})
        return
    print(digest)
    print(
        'Put it into the config: [access] mode = "password", password_hash = "…"', file=sys.stderr
    )


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
    import hashlib
    import re
    import secrets

    from qwenctl.errors import ConfigError

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ConfigError(
            f"{name!r}: a key's name is made of letters, digits, '.', '_' and '-', at most 64"
        )
    key = f"qk_{secrets.token_urlsafe(32)}"
    digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if json:
        print_json({"name": name, "key": key, "hash": digest})
        return
    print(f"{key}\n")
    print("This is the only time that the key is shown. Add to the end of the config file:\n")
    print(f'[[access.keys]]\nname = "{name}"\nhash = "{digest}"')
