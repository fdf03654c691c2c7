"""Shut the server down without cutting what runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn

from qwenctl.lib.text import duration

from .websocket_server import WebSocket

log = logging.getLogger("qwenctl.proxy")

QUIET = 5.0
"""What neither counts as use nor has moved for so many seconds is not waited for: an open tab."""

POLL = 0.05
"""Seconds between two looks at what still runs."""

CUT_SECONDS = 1.0
"""How long what is cut may take to tell its client, in seconds."""

AT_ONCE = 3.0
"""How long the end may take after a second signal, in seconds."""


class Application(Protocol):
    """What the server asks of the application when it shuts down."""

    def close(self) -> None:
        """Let go of what a successor takes over, and answer who waits."""

    def works(self, quiet: float) -> bool:
        """Return whether requests are in flight; end open tabs that have been ``quiet`` so long."""


class Server(uvicorn.Server):
    """uvicorn's server, which lets go of its port and then lets what runs come to its end.

    uvicorn closes WebSockets at once, and waits as long for an open tab as for a generation.
    """

    def __init__(self, config: uvicorn.Config, application: Application, grace: float) -> None:
        """``grace``: how long what runs may take to end, in seconds."""
        super().__init__(config)
        self._application = application
        self._grace = grace
        self.ended_by: int | None = None
        """The signal that ended it, to be raised again by the caller; uvicorn would at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            end = threading.Timer(AT_ONCE, os._exit, (128 + sig,))
            end.daemon = True
            end.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        waiting = [client for listening in sockets or () for client in _accepted(listening)]
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        self._application.close()
        self._end_connections()
        await self._welcome(waiting)
        self._end_connections()
        await self._drain()
        await self._cut()
        await self.lifespan.shutdown()
        self.ended_by = next(iter(self._captured_signals), None)
        self._captured_signals.clear()

    def _end_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if not isinstance(connection, WebSocket):
                connection.shutdown()  # it ends after the present answer

    async def _welcome(self, clients: Sequence[socket.socket]) -> None:
        """Serve clients whose connections the kernel has accepted for us."""

        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        state, lifespan = self.server_state, self.lifespan
        protocol = partial(make, config=self.config, server_state=state, app_state=lifespan.state)
        loop = asyncio.get_running_loop()
        for client in clients:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(protocol, client)

    async def _drain(self) -> None:
        """Wait until nothing runs, but no longer than is configured, or until a second signal."""
        began, told = time.monotonic(), False
        while self.server_state.connections or self.server_state.tasks:
            passed = time.monotonic() - began
            works = self._application.works(QUIET) or self._writes
            if self.force_exit or passed >= self._grace or (passed > QUIET and not works):
                return
            if works and passed > 1.0 and not told:
                told = True
                log.info(
                    "what runs goes on to its end, for %s at most; a second signal cuts it",
                    duration(self._grace),
                )
            await asyncio.sleep(POLL)

    @property
    def _writes(self) -> bool:
        """Whether a client has yet to take the end of its answer."""
        return any(_unsent(connection) for connection in self.server_state.connections)

    async def _cut(self) -> None:
        tasks = list(self.server_state.tasks)
        if tasks:
            log.info("requests cut off: %d", len(tasks))
        for connection in list(self.server_state.connections):
            if isinstance(connection, WebSocket):
                connection.shutdown()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_SECONDS)


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """Take the connections that wait: closing the port would reset them."""
    with contextlib.suppress(OSError):
        while True:
            yield listening.accept()[0]


def _unsent(connection: Any) -> int:
    """Return how many bytes the connection holds that its client has not taken."""
    return int(connection.transport.get_write_buffer_size())
