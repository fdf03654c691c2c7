"""Bound how far a connection reads ahead, and how long its client may stand still."""

from __future__ import annotations

import asyncio
import time

from uvicorn.protocols.http.flow_control import FlowControl

BODY_SECONDS = 60.0
"""How long nothing of a body may arrive while it is read, in seconds; nginx's
client_body_timeout is the same."""

READER_SECONDS = 120.0
"""How long a client may take nothing of an answer that waits for it, in seconds."""

AHEAD = 16 * 1024
"""How much of a body nobody asks for is read, in bytes: a held upload takes no more memory."""

READ = 256 * 1024
"""The most bytes of one read. The reads of a body grow, so that what is held unread stays small."""


_BUFFER = memoryview(bytearray(READ))
"""What all connections are read into; its content is copied before the next read."""

SHORT = _BUFFER[:AHEAD]


class Stall:
    """Notices a client that takes nothing of what is written for it."""

    def __init__(self) -> None:
        self._left = 0
        self._since = 0.0

    def lasts(self, transport: asyncio.Transport, now: float) -> bool:
        """Return whether nothing has been taken for `READER_SECONDS`.

        A generation that says nothing for long is no stall: nothing waits for the client then.
        """
        left = transport.get_write_buffer_size()
        if left == 0 or left != self._left:
            self._left, self._since = left, now
            return False
        return now - self._since > READER_SECONDS


def drop(transport: asyncio.Transport) -> None:
    """Close a connection at once, also where its client takes nothing."""
    if transport.get_write_buffer_size():
        transport.abort()
    else:
        transport.close()


class Pace(FlowControl):
    """uvicorn's flow control, which also knows when a body has moved, and whether it is wanted."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.wanted = False
        """Whether the application waits for more of the body."""
        self._read = AHEAD
        self.moved_at = time.monotonic()
        self._stall = Stall()

    def resume_reading(self) -> None:
        if self.read_paused or not self.wanted:
            self.moved_at = time.monotonic()  # the client could not send before
        self.wanted = True
        super().resume_reading()

    def arrived(self) -> None:
        """Note that a piece of a body is there."""
        if self.wanted:
            self.wanted, self._read = False, min(READ, 2 * self._read)

    def ended(self) -> None:
        """Note that a request is over."""
        self.wanted, self._read = False, AHEAD

    @property
    def read_size(self) -> int:
        """The most bytes of the next read."""
        return self._read if self.wanted else AHEAD

    def buffer(self) -> memoryview:
        """Return where to read to."""
        return _BUFFER[: self._read] if self.wanted else SHORT

    def body_stalls(self, now: float) -> bool:
        return now - self.moved_at > BODY_SECONDS

    def reader_stalls(self, now: float) -> bool:
        return self._stall.lasts(self._transport, now)


class Reader(asyncio.BufferedProtocol):
    """Reads for a protocol, into one buffer of the whole process.

    uvloop reads up to 250 kB at once, all of which a held upload would keep.
    """

    pace: Pace | None = None

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return SHORT if self.pace is None else self.pace.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.inner.data_received(_BUFFER[:nbytes])  # type: ignore[arg-type]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()
