"""Notices that the client of a held request has hung up, so that it wakes and keeps on nothing.

ASGI tells of that only to whoever reads the body to its end. So a body that fits into the server's
own buffer is read ahead and given out again later; a larger one is left where it is, with the
client, and its hanging up is seen when the node asks for the body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from .forward import ClientGone
from .mirror import View
from .request import Message, Receive, Request

__all__ = ["READ_AHEAD", "Held"]

READ_AHEAD = 64 * 1024
"""The longest body that is read ahead, in bytes: as much as the server buffers anyway."""


class Held:
    """The ``receive`` of a request that may wait long; used in place of the server's own."""

    def __init__(self, request: Request, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._size = 0
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        length = request.headers.get("content-length", "0")
        # Reading would tell a client with "Expect: 100-continue" to send its body now.
        self._may_read = "expect" not in request.headers and (
            not length.isdigit() or int(length) <= READ_AHEAD
        )

    async def __call__(self) -> Message:
        return self._ahead.popleft() if self._ahead else await self._receive()

    async def wait(self, view: View, timeout: float) -> None:
        """Return at the next snapshot, or after so many seconds.

        Raises:
            ClientGone: the client has hung up.
        """
        if self._watcher is None and self._may_read:
            self._watcher = asyncio.ensure_future(self._watch())
        # The event of now: a snapshot that comes before this task runs is not missed.
        news = asyncio.ensure_future(view.changed.wait())
        waits: set[asyncio.Future[Any]] = {news}
        if self._watcher and not self._watcher.done():
            waits.add(self._watcher)
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if self._gone:
            raise ClientGone

    async def stop(self) -> None:
        """Read nothing ahead any more."""
        watcher, self._watcher = self._watcher, None
        if watcher:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self) -> None:
        while self._may_read:
            message = await self._receive()
            self._ahead.append(message)
            if message["type"] == "http.disconnect":
                self._gone = True
                return
            self._size += len(message.get("body", b""))
            # A chunked body may turn out to be long; one that has come whole is followed by the
            # news of the client's hanging up only.
            self._may_read = self._size <= READ_AHEAD or not message.get("more_body")
