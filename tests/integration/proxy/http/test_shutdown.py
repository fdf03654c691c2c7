"""The server's shutdown: who has got a connection before the port was closed gets an answer."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import uvicorn
import uvloop

from proxy.http.server import Protocol
from proxy.http.shutdown import Server
from tests.integration.proxy.running import RawClient

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Application:
    def close(self) -> None: ...

    def works(self, quiet: float) -> bool:
        return quiet < 0

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def test_requests_sent_before_the_port_is_closed_are_answered() -> None:
    async def go() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        application = _Application()
        options = uvicorn.Config(application, http=Protocol, lifespan="off", log_config=None)  # type: ignore[arg-type]
        options.load()
        server = Server(options, application, 5)
        server.lifespan = options.lifespan_class(options)
        await server.startup([listening])
        kept, idle = RawClient(port), RawClient(port)
        for client in (kept, idle):
            client.send(GET)
            assert (await asyncio.to_thread(client.answer))[0] == 200
        new = [RawClient(port) for _ in range(5)]  # in the kernel: the loop does not run
        for client in (kept, *new):
            client.send(GET)
        began = time.monotonic()
        await server.shutdown([listening])
        assert time.monotonic() - began < 3
        for client in (kept, *new):
            with client:
                status, headers, body = client.answer()
                assert (status, body) == (200, b"ok")
                assert client is not kept or headers["connection"] == "close"
        with idle:
            assert idle.file.read() == b""

    uvloop.run(go())
