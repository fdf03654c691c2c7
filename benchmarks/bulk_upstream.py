"""The upstream of the transfer measurement: takes and sends bodies as fast as it can.

`GET /BYTES` sends so many zero bytes; a `PUT` or `POST` is drained and answered with 204; `GET /`
says that it is ready. One exchange a connection. Bodies must come with a Content-Length. What a
WebSocket brings is drained.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import sys
from typing import cast

CHUNK = bytes(1 << 20)


class Upstream(asyncio.BufferedProtocol):
    """One connection. The body lands in one buffer again and again; nobody looks at it."""

    buffer = memoryview(bytearray(1 << 20))  # shared: its content is never read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.head = b""
        self.head_done = False
        self.left = 0  # of the request's body, in bytes
        self.writable = asyncio.Event()
        self.writable.set()
        self.sending: asyncio.Task[None] | None = None

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.head_done:
            self.head += self.buffer[:nbytes]
            head, end, rest = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            self.head_done = True
            lines = head.decode("latin-1").split("\r\n")
            self.method, self.target, _ = lines[0].split(" ", 2)
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:])
            }
            if key := headers.get("sec-websocket-key"):
                self.left = sys.maxsize
                self.transport.write(accepted(key))
                return
            if "transfer-encoding" in headers:
                self.answer("411 Length Required")
                return
            self.left = int(headers.get("content-length", 0))
            nbytes = len(rest)
        self.left -= nbytes
        if self.left > 0:
            return
        size = self.target.lstrip("/")
        if self.method != "GET":
            self.answer("204 No Content")
        elif not size.isdigit():
            self.answer("200 OK\r\nContent-Length: 0")
        else:
            start = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
            self.transport.write(start.encode())
            self.sending = asyncio.ensure_future(self.send(int(size)))

    def answer(self, status: str) -> None:
        self.transport.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode())
        self.transport.close()

    async def send(self, left: int) -> None:
        while left > 0 and not self.transport.is_closing():
            self.transport.write(CHUNK[:left])
            left -= len(CHUNK)
            await self.writable.wait()
        self.transport.close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.writable.set()


def accepted(key: str) -> bytes:
    """The answer to a WebSocket handshake (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    accept = base64.b64encode(digest).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    with contextlib.suppress(KeyboardInterrupt):
        try:
            import uvloop
        except ImportError:
            asyncio.run(serve(port))
        else:
            uvloop.run(serve(port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
