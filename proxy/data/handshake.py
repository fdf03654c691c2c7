"""A node's answer to a WebSocket handshake that it does not accept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import aiohttp
from aiohttp.connector import Connection
from multidict import CIMultiDict, CIMultiDictProxy

MAX_BODY = 64 * 1024
"""How much of a refusal's body is passed on, in bytes."""

BODY_SECONDS = 5.0
"""How long a refusal's body may take, in seconds: an event stream would never end."""


class HandshakeRefused(Exception):
    """The node answered a handshake with something else than 101 Switching Protocols."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"the node answered the handshake with {status}")
        self.status, self.headers, self.body = status, headers, body


class Response(aiohttp.ClientResponse):
    """Raises `HandshakeRefused`: aiohttp would drop the answer, or follow a redirect to any host."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        await super().start(connection)
        asked = self.request_info.headers.get("Upgrade") == "websocket"
        if asked and self.status != 101:
            raise HandshakeRefused(self.status, list(self.raw_headers), await self._body_so_far())
        if asked and "upgrade" in _tokens(self.headers.getall("Connection", ())):
            headers = CIMultiDict(self.headers)
            headers["Connection"] = "upgrade"  # aiohttp takes no list (RFC 6455 §4.1)
            self._cache["headers"] = CIMultiDictProxy(headers)
        return self

    async def _body_so_far(self) -> bytes:
        body = bytearray()

        async def collect() -> None:
            while len(body) < MAX_BODY and not self.content.at_eof():
                body.extend(await self.content.readany())

        with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
            await asyncio.wait_for(collect(), BODY_SECONDS)
        return bytes(body[:MAX_BODY])


def _tokens(lines: Iterable[str]) -> set[str]:
    return {token.strip().lower() for line in lines for token in line.split(",")}
