"""`qwenctl access`: make secrets, of which the config file keeps hashes only."""

from __future__ import annotations

from qwenctl.cli.common.context import print_json
from qwenctl.errors import ConfigError


def hash_password(json: bool) -> None:
    """Do `qwenctl access hash-password`."""
    import sys

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


def new_key(name: str, json: bool) -> None:
    """Do `qwenctl access new-key`."""
    import hashlib
    import re
    import secrets

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
