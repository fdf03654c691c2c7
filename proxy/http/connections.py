"""Options of TCP connections, which uvicorn and aiohttp leave to the system."""

from __future__ import annotations

import socket

IDLE = 60
"""Seconds of silence until the peer of a connection is probed."""
INTERVAL = 15
COUNT = 4
"""Probes without an answer, each INTERVAL seconds apart, until the peer counts as gone."""

_OPTIONS = {
    "TCP_KEEPIDLE": IDLE,
    "TCP_KEEPINTVL": INTERVAL,
    "TCP_KEEPCNT": COUNT,
    # In milliseconds: also for a peer that vanishes while something is being sent (tcp(7)).
    "TCP_USER_TIMEOUT": 1000 * (IDLE + INTERVAL * COUNT),
}


def probe_peer(connection: socket.socket) -> None:
    """Have the kernel break a connection whose peer has vanished without a word (RFC 9293 §3.8.4).

    Otherwise a request of a client that lost power, or to a node that did, would last for ever and
    keep the GPU on. Accepted connections inherit the options of the listening socket (Linux).
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
