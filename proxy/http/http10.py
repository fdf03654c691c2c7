"""Answer HTTP/1.0 clients: no chunks, and the connection stays only where the client asks."""

from __future__ import annotations

import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .request import ASGIApp, Message, Receive, Scope, Send

_NO_BODY = (204, 304)
_RESET = struct.pack("ii", 1, 0)


class Http10:
    """An application whose answers end with the connection, if nothing gives their length.

    uvicorn would send chunks, which are HTTP/1.1's (RFC 9112 §6.1). The connection stays if both
    sides say keep-alive (RFC 9112 §9.3).
    """

    def __init__(self, app: Any, cycle: RequestResponseCycle) -> None:
        self._app: ASGIApp = app
        self._cycle = cycle
        cycle.waiting_for_100_continue = False  # it knows no interim answers (RFC 9110 §10.1.1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle, ends_it = self._cycle, False

        async def plainly(message: Message) -> None:
            nonlocal ends_it
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                ends_it = not (
                    scope["method"] == "HEAD"
                    or message["status"] in _NO_BODY
                    or any(name.lower() == b"content-length" for name, _ in headers)
                )
                if ends_it:
                    cycle.keep_alive, cycle.chunked_encoding = False, False
                elif cycle.keep_alive:
                    headers.append((b"connection", b"keep-alive"))
                message = {**message, "headers": headers}
            elif ends_it:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, plainly)
        finally:
            if ends_it and not cycle.response_complete and not cycle.disconnected:
                _reset(cycle.transport)


def _reset(transport: Any) -> None:
    """Break a connection off, so that what has arrived is not taken for the whole answer."""
    if (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
