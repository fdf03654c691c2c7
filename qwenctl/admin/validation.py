"""Check the settings as a whole, as `qwenctl serve` needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from qwenctl.config.authenticators import make_authenticator
from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_secret


def settings_checks(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each check of the deployment with its name; it raises `ConfigError`."""
    yield "listen", config.check_listen
    yield "password", partial(check_password, config)
    if config.redis_password_file:
        password = Path(config.redis_password_file).expanduser()
        yield "redis password", partial(read_secret, password, "redis_password_file")
    if config.node_secret_file or config.node_secret.get_secret_value():
        yield "node secret", config.usable_node_secret
    for name, table in config.access.authenticators.items():
        yield "authenticator", partial(make_authenticator, name, table)


def check_password(config: Config) -> None:
    """Check that ``access.password_hash``, if set, is a hash of a password.

    Raises:
        ConfigError: it is no whole argon2id hash, or that of the empty password.
    """

    if not config.access.password_hash:
        return
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

    try:
        PasswordHasher().verify(config.access.password_hash, "")
        mistake = "the hash of the empty password, so everybody could sign in"
    except VerifyMismatchError:
        return  # a valid hash, and not that of the empty password
    except (Argon2Error, InvalidHashError):
        mistake = "not a whole argon2id hash, so nobody could sign in"
    raise ConfigError(f"access.password_hash: {mistake}; `qwenctl access hash-password` makes one")
