"""Calls that end at a deadline, and connections that check it and bound the answers.

A name lookup has no time limit and happens after a request was made and before it is sent. So the
connection checks the time once it stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from http.client import HTTPResponse
from typing import Any, TypeVar

from qwenctl.clouds.base import Transient

T = TypeVar("T")

MAX_ANSWER = 16 * 2**20
"""The longest answer in bytes; that about a hundred instances has less than one MiB."""


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
    """Make a subclass of a connection that calls ``check`` before it sends, and bounds answers.

    Args:
        connection: a subclass of `http.client.HTTPConnection`, as all urllib3s have.
        check: raises to stop the request; runs in the request's thread, once it is connected.
    """

    class Deadline(connection):  # type: ignore[misc]
        response_class = _BoundedResponse

        def send(self, data: object) -> None:
            if self.sock is None and self.auto_open:
                self.connect()
            check()
            super().send(data)

    return Deadline


class _BoundedResponse(HTTPResponse):
    """An answer of at most `MAX_ANSWER` bytes."""

    def begin(self) -> None:
        self.fp: Any = _Bounded(self.fp)
        super().begin()
        # Nobody asked for a compressed answer, which can be as long as it likes.
        del self.headers["Content-Encoding"]


class _Bounded:
    """A file whose reads fail beyond `MAX_ANSWER` bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MAX_ANSWER

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int | None = None, /) -> bytes:
        return self._count(self._file.read(self._size(size)))

    def read1(self, size: int | None = None, /) -> bytes:
        return self._count(self._file.read1(self._size(size)))

    def readline(self, size: int | None = None, /) -> bytes:
        return self._count(self._file.readline(self._size(size)))

    def readinto(self, buffer: Any, /) -> int:
        count: int = self._file.readinto(memoryview(buffer)[: self._left + 1])
        self._take(count)
        return count

    def _size(self, size: int | None) -> int:
        return min(self._left + 1, size if size is not None and size >= 0 else self._left + 1)

    def _count(self, data: bytes) -> bytes:
        self._take(len(data))
        return data

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Transient(
                "the answer is too long for one of the cloud's API; is a proxy in between?"
            )
