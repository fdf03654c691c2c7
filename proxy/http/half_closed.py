"""Tell a client that has ended its side of the connection from a client that is gone.

Both look alike: a FIN. The former, such as ``nc -N`` or a health check, waits for its answer; for
the latter nobody should work. Only what is written tells: a closed socket answers with a reset.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PROBE_SECONDS = 0.4
"""How long nothing may be written after a client's end until it is probed, in seconds."""

LOOK_SECONDS = 0.1
"""How often it is looked for a reset after that, in seconds."""

SILENT_SECONDS = 5.0
"""How long a client that cannot be probed is believed to wait for an answer, in seconds."""

_ENDED = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT (tcp_states.h of Linux)."""

_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim answer, which every client of HTTP/1.1 skips (RFC 9110 §15.2)."""


def watch(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.Transport,
    cycle: RequestResponseCycle,
    written: Callable[[], int],
    *,
    pipelined: bool,
) -> None:
    """Close the connection of a client that has ended its side, once it turns out to be gone.

    Args:
        cycle: the last of its requests, all of which has arrived.
        written: returns how much has been written on the connection.
        pipelined: whether an earlier request is being answered.
    """
    before, began, probed = written(), loop.time(), False

    def look() -> None:
        nonlocal probed
        if cycle.response_complete or transport.is_closing():
            return
        if _broken(transport):
            transport.abort()
            return
        if not probed and written() == before:
            silent = loop.time() - began >= SILENT_SECONDS
            if cycle.response_started or pipelined or silent:
                transport.close()
                return
            if cycle.scope["http_version"] != "1.0":
                transport.write(_PROBE)
                probed = True
        loop.call_later(LOOK_SECONDS, look)

    loop.call_later(PROBE_SECONDS, look)


def has_ended(transport: asyncio.Transport) -> bool:
    """Return whether the client has ended its side or is gone, also where nothing is read."""
    connection = transport.get_extra_info("socket")
    if not connection or not hasattr(socket, "TCP_INFO") or connection.family == socket.AF_UNIX:
        return False
    state: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in _ENDED


def _broken(transport: asyncio.Transport) -> bool:
    """Return whether a reset has come, which a transport that does not read any more misses."""
    connection = transport.get_extra_info("socket")
    return bool(connection and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
