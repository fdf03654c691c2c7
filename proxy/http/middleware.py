"""Checks in front of other ASGI applications: the host name, and small bodies as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable

from qwenctl.lib.settings_types import is_loopback

from .problem import refuse_websocket, send_problem
from .request import ASGIApp, Message, Networks, Receive, Request, Scope, Send

BODY_SECONDS = 20.0
"""How long a request to the control plane may take to arrive."""


class BoundedBody:
    """Passes only whole bodies on, so that slow senders hold no threads of an application."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.of(scope, ())
        try:
            body = await _read(receive, self._limit)
        except asyncio.TimeoutError:
            await send_problem(request, send, 408, "too_slow", "the body did not arrive in time")
            return
        except _TooLarge:
            await send_problem(request, send, 413, "too_large", "the body is too large")
            return
        if body is None:
            return

        async def read() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, read, send)


class _TooLarge(Exception):
    pass


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return the body, or None if the client has disconnected."""
    chunks: list[bytes] = []
    size, more = 0, True
    deadline = time.monotonic() + BODY_SECONDS
    while more:
        message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise _TooLarge
        more = message.get("more_body", False)
    return b"".join(chunks)


class HostCheck:
    """Refuses host names that are not ours.

    A site whose name points at this machine (DNS rebinding) could otherwise act as the user.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], trusted: Networks) -> None:
        self._app = app
        self._trusted = trusted
        self._names = {"localhost", *(name.lower() for name in names if name)}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        request = Request.of(scope, self._trusted)
        name = request.hostname
        if name and name not in self._names and not is_loopback(name):
            detail = f"unknown host name {name!r}; set proxy.public_url or gpu.NAME.hosts"
            if scope["type"] == "websocket":
                return refuse_websocket(scope, send, 421, "unknown_host", detail)
            return send_problem(request, send, 421, "unknown_host", detail)
        return self._app(scope, receive, send)
