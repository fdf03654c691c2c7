"""Notices that the client of a held request has hung up, so that it wakes and keeps on nothing.

ASGI tells of that only to whoever reads the body to its end. So a body that fits into the server's
own buffer is read ahead and given out again later; a larger one is left where it is, with the
client, and its hanging up is seen when the node asks for the body. So a held request takes no more
memory than the server's buffer does anyway, and `proxy.max_held` bounds their number.

Whoever must look into a body before it is forwarded (`tiers`) reads ahead here too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from ..http.request import Message, Receive, Request
from .forward import ClientGone
from .snapshot_cache import View

__all__ = ["READ_AHEAD", "ReadAheadBudget", "RequestBuffer"]

READ_AHEAD = 64 * 1024
"""The longest body that is read ahead, in bytes: as much as the server buffers anyway."""


MESSAGE = 512
"""About what a piece of a body takes besides its bytes: many tiny ones are not free."""


class ReadAheadBudget:
    """How much all requests together have read ahead and not given out again."""

    def __init__(self) -> None:
        self.bytes = 0


class RequestBuffer:
    """The ``receive`` of a request that may wait long; used in place of the server's own."""

    def __init__(self, request: Request, receive: Receive, in_all: ReadAheadBudget) -> None:
        self._receive = receive
        self._in_all = in_all
        self._messages: deque[Message] = deque()
        self.ahead = 0
        """What has been read ahead and not given out again yet takes so many bytes."""
        self._size = 0
        self._whole = False
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        length = request.headers.get("content-length", "0")
        # Reading would tell a client with "Expect: 100-continue" to send its body now.
        self._may_read = "expect" not in request.headers and (
            not length.isdigit() or int(length) <= READ_AHEAD
        )

    async def __call__(self) -> Message:
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        self._count(-MESSAGE - len(message.get("body", b"")))
        return message

    def close(self) -> None:
        """The request has ended: forget what nobody has asked for."""
        self._messages.clear()
        self._count(-self.ahead)

    def _count(self, size: int) -> None:
        self.ahead += size
        self._in_all.bytes += size

    async def read_more(self) -> bytes | None:
        """Read one more piece of the body ahead, even if the client waits with "Expect:
        100-continue" for somebody who wants it; None after the last one.

        Raises:
            ClientGone: the client has hung up.
        """
        if self._whole:
            return None
        piece = await self._read()
        if self._gone:
            raise ClientGone
        return piece

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
        while self._may_read and not self._gone:
            await self._read()

    async def _read(self) -> bytes:
        message = await self._receive()
        self._messages.append(message)
        self._gone = message["type"] == "http.disconnect"
        piece: bytes = message.get("body", b"")
        self._count(MESSAGE + len(piece))
        self._size += len(piece)
        self._whole = not message.get("more_body")
        # A chunked body may turn out to be long; one that has come whole is followed by the
        # news of the client's hanging up only.
        self._may_read = self._size <= READ_AHEAD or self._whole
        return piece
