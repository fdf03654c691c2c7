"""Read a small request body on the event loop, before a thread works on the request."""

from __future__ import annotations

import asyncio
import time

from .problem import send_problem
from .request import ASGIApp, Message, Receive, Request, Scope, Send

__all__ = ["BoundedBody"]

BODY_SECONDS = 20.0
"""How long a request to the control plane may take to arrive."""


class BoundedBody:
    """Hands an application whole bodies only, so that a slow sender holds none of its threads."""

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
    """Return the body, or None if the client has gone."""
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
