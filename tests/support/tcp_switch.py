"""A TCP proxy whose upstream can be switched, as a load balancer in front of Redis does."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["TcpSwitch"]


class TcpSwitch:
    """Passes connections to `port` of 127.0.0.1 on to ``upstream``; a context manager.

    Setting `upstream` concerns new connections only: those that exist stay where they are.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.accepted: list[int] = []
        """The upstream of each connection so far."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> TcpSwitch:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.accepted.append(self.upstream)
                with contextlib.suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self.upstream))
                    for pair in ((client, server), (server, client)):
                        threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
