"""Calls that end at a deadline, and connections that check it before they send.

A name lookup has no time limit and happens after a request was made and before it is sent. So the
connection checks the time once it stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")


def run_by(deadline: float, work: Callable[[], T], late: Exception) -> T:
    """Run ``work`` in a thread and return its result; raise ``late`` at the deadline.

    A slow name server, or a server that sends byte by byte, outlasts every socket timeout.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="cloud-call", daemon=True).start()
    if not wait([future], max(0.0, deadline - time.monotonic())).done:
        raise late
    return future.result()


def with_deadline(connection: type[Any], check: Callable[[], object]) -> type[Any]:
    """Make a subclass of a connection that calls ``check`` before it sends.

    Args:
        connection: a subclass of `http.client.HTTPConnection`, as all urllib3s have.
        check: raises to stop the request; runs in the request's thread, once it is connected.
    """

    class Deadline(connection):  # type: ignore[misc]
        def send(self, data: object) -> None:
            if self.sock is None and self.auto_open:
                self.connect()
            check()
            super().send(data)

    return Deadline
