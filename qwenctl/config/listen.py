"""Listen where the settings say."""

from __future__ import annotations

import errno
import socket

from qwenctl.config.deployment import no_address
from qwenctl.errors import ConfigError

BACKLOG = 4096
"""How many connections may wait to be accepted."""


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: not an address, in use, or not ours.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(address)
            connection.listen(BACKLOG)  # a second socket can bind to the port, but not listen
        except BaseException:
            connection.close()
            raise
    except (socket.gaierror, UnicodeError):
        raise ConfigError(f"cannot listen on {place}: {no_address(host)}") from None
    except OSError as error:
        hint = {
            errno.EADDRINUSE: "the port is in use; choose another one in proxy.listen or --listen",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "ports below 1024 need root; choose another one or put a web server before it",
        }.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(f"cannot listen on {place}: {hint}") from None
    return connection
