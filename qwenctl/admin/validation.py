"""Check the settings as a whole, as `qwenctl serve` needs them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from qwenctl.config.authenticators import make_authenticator
from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_secret
from qwenctl.lib.settings_types import is_loopback


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


RESOLVE_SECONDS = 2.0
"""How long the names of the nodes' URLs are looked up."""


def node_url_warnings(config: Config) -> Iterator[str]:
    """Yield what keeps agents in a cloud from reaching the URLs that they are told."""
    gpus = [gpu for gpu in config.gpu.values() if gpu.agent and not gpu.settings.on_this_machine]
    if not gpus:
        return
    hosts = {url: urlsplit(url).hostname or "" for url in config.node_urls}
    unknown = unresolved(list(hosts.values()))
    for url, host in hosts.items():
        told = told_by(config)
        if is_loopback(host) or host in ("0.0.0.0", "::"):
            yield (
                f"{told} to reach {url}, which means the node itself, seen from an instance in the "
                "cloud: no agent is ever heard; set proxy.node_urls to the proxy's address in their "
                "network"
            )
        elif host in unknown:
            yield (
                f"{told} to reach {url}, but {host} does not resolve here: if it does not at the "
                "nodes either, no agent is ever heard"
            )


def told_by(config: Config) -> str:
    """Return which setting tells nodes where to call, as the beginning of a sentence."""
    if config.proxy.node_urls:
        return "proxy.node_urls tells nodes"
    own = "proxy.public_url" if config.proxy.public_url else "proxy.listen"
    return f"proxy.node_urls is not set, so {own} tells nodes"


def unresolved(hosts: list[str]) -> set[str]:
    """Return the names that have no address; a resolver that does not answer proves nothing."""
    found: set[str] = set()

    def look(host: str) -> None:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                found.add(host)
        except UnicodeError:  # a label that no DNS name has
            found.add(host)

    threads = [Thread(target=look, args=(host,), daemon=True) for host in dict.fromkeys(hosts)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return set(found)


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
