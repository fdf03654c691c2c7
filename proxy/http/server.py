"""The HTTP server: uvicorn, with the head and the first piece of an answer sent in one write.

uvicorn writes them one by one, which costs a system call more for each request: for the small
answers that most are, a tenth of all the time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["JoiningProtocol"]

LARGE = 16 * 1024
"""A piece of this many bytes is written at once; joining it would only copy it."""


class JoiningProtocol(HttpToolsProtocol):
    """uvicorn's protocol, on a transport that joins what is written in one step of the loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]


class _Joining:
    """A transport that writes small pieces together, when the present step of the loop is over."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        if len(data) >= LARGE:
            self._flush()
            self._transport.write(data)
            return
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if self._transport.is_closing():
                return  # the client has gone meanwhile
            self._transport.write(b"".join(pieces) if len(pieces) > 1 else pieces[0])

    def writelines(self, pieces: Any) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
