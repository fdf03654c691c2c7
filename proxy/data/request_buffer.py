"""Buffer a held request's body, to notice when its client disconnects.

A client that has gone must not wake the GPU or keep it on. ASGI reports a disconnect only to an
application that reads the body to its end, so a body that fits into the server's own buffer is read
ahead and replayed later. A larger body stays with the client, whose disconnect the
server notices without reading (`request.GONE`), unless the kernel cannot take the whole body: then
when the node reads it. A held request so takes no more memory than the server's buffer takes anyway, and
`proxy.max_held` bounds the number of held requests.

`model_finder`, which must look into a body before it is forwarded, reads ahead here too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from ..http.request import Message, Receive, Request
from .forward import ClientGone
from .snapshot_cache import View

READ_AHEAD = 64 * 1024
"""The longest body that is read ahead, in bytes: as much as the server buffers anyway."""

MESSAGE = 512
"""About how many bytes a piece of a body takes besides its content; tiny pieces are not free."""


class ReadAheadBudget:
    """Count the bytes that all requests together have read ahead and not replayed yet."""

    def __init__(self) -> None:
        self.bytes = 0


class RequestBuffer:
    """An ASGI ``receive`` for a request that may wait long, in place of the server's own."""

    def __init__(self, request: Request, receive: Receive, in_all: ReadAheadBudget) -> None:
        self._receive = receive
        self._in_all = in_all
        self._messages: deque[Message] = deque()
        self.ahead = 0
        """How many bytes have been read ahead and not replayed yet."""
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

    @property
    def whole(self) -> bytes | None:
        """The body, if all of it has been read ahead and it is no longer than `READ_AHEAD`."""
        if not self._whole or self._size > READ_AHEAD:
            return None
        return b"".join(message.get("body", b"") for message in self._messages)

    def close(self) -> None:
        """Drop what has not been replayed, because the request has ended."""
        self._messages.clear()
        self._count(-self.ahead)

    def _count(self, size: int) -> None:
        self.ahead += size
        self._in_all.bytes += size

    async def read_more(self) -> bytes | None:
        """Read the next piece of the body ahead; return None after the last.

        The client may wait with "Expect: 100-continue": reading makes the server ask for the body.

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
        """Return at the next snapshot, or after ``timeout`` seconds.

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
        """Stop reading ahead."""
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
        # A chunked body may turn out to be long. After a whole body only the disconnect follows.
        self._may_read = self._size <= READ_AHEAD or self._whole
        return piece
