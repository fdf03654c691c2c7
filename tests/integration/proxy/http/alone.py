"""The server's protocol without the proxy behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop

from proxy.http.server import Protocol


def serve(app: Any, client: Callable[[int], None]) -> None:
    """Run a client's blocking code, given the port, against an ASGI application."""

    async def go() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        running = uvicorn.Server(
            uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None)
        )
        task = asyncio.ensure_future(running.serve([listening]))
        await asyncio.to_thread(client, listening.getsockname()[1])
        running.should_exit = True
        await task

    uvloop.run(go())
