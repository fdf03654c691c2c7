"""A client that sends bytes as they are, and reads answers strictly (RFC 9112 §6.3)."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.conformance.case import Await, HalfClose, Pause, Step

TIMEOUT = 15.0
"""How long an answer may take, in seconds."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")


@dataclass
class Response:
    """An answer, final or interim."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    framing: str = "none"
    whole: bool = True
    trailers: list[tuple[str, str]] = field(default_factory=list)


class Garbage(AssertionError):
    """What came is no answer."""


class Closed(Exception):
    """The connection was closed where an answer could begin."""


class Client:
    """A connection. ``methods``: those of the requests, in turn, on which an answer's framing depends."""

    def __init__(self, port: int, address: str, methods: Sequence[str]) -> None:
        self._socket = socket.create_connection(
            ("127.0.0.1", port), timeout=TIMEOUT, source_address=(address, 0)
        )
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._ended = False
        self._methods = list(methods)
        self.responses: list[Response] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def perform(self, steps: Sequence[Step]) -> None:
        """Send, and wait where the steps say so."""
        for step in steps:
            if isinstance(step, bytes):
                try:
                    self._socket.sendall(step)
                except ConnectionError:
                    return  # it has been refused already
            elif isinstance(step, Pause):
                time.sleep(step.seconds)
            elif isinstance(step, HalfClose):
                self._socket.shutdown(socket.SHUT_WR)
            elif isinstance(step, Await):
                while self.read().status != step.status:
                    pass

    def read(self) -> Response:
        """Read the next answer.

        Raises:
            Closed: there is none.
        """
        head = self._until(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        found = _STATUS_LINE.fullmatch(line)
        if not found:
            raise Garbage(f"no status line: {line!r}")
        response = Response(int(found[2]), [_header(one) for one in fields])
        self.responses.append(response)
        self._read_body(response)
        return response

    def _read_body(self, response: Response) -> None:
        if 100 <= response.status < 200:
            return
        method = self._methods.pop(0) if self._methods else ""
        if method == "HEAD" or response.status in (204, 304):
            return
        codings = [value for name, value in response.headers if name == "transfer-encoding"]
        lengths = [value for name, value in response.headers if name == "content-length"]
        if codings and lengths:
            raise Garbage("a length and a transfer coding")
        if codings:
            if codings != ["chunked"]:
                raise Garbage(f"codings {codings}")
            response.framing = "chunked"
            self._read_chunks(response)
        elif lengths:
            if len(lengths) > 1 or not lengths[0].isdigit():
                raise Garbage(f"lengths {lengths}")
            response.framing = "length"
            response.body = self.exactly(int(lengths[0]))
            response.whole = len(response.body) == int(lengths[0])
        else:
            response.framing = "close"
            response.body = self.rest()

    def _read_chunks(self, response: Response) -> None:
        try:
            while True:
                size = int(self._until(b"\r\n").partition(b";")[0], 16)
                if not size:
                    break
                response.body += self.exactly(size)
                if self._until(b"\r\n") != b"\r\n":
                    raise Garbage("a chunk is longer than its size")
            while (line := self._until(b"\r\n")) != b"\r\n":
                response.trailers.append(_header(line[:-2]))
        except Closed:
            response.whole = False

    def rest(self) -> bytes:
        """All that comes until the connection is closed."""
        while not self._ended:
            self._more()
        rest, self._buffer = self._buffer, b""
        return rest

    def settle(self, seconds: float = 0.15) -> None:
        """Read until the connection is closed, or nothing has come for so long."""
        self._socket.settimeout(seconds)
        try:
            while not self._ended:
                self._more()
        except TimeoutError:
            self._socket.settimeout(TIMEOUT)

    def pending(self) -> tuple[bytes, bool]:
        """What has arrived unasked, and whether the connection is closed, without waiting."""
        self._socket.settimeout(0.0)
        try:
            while not self._ended:
                self._more()
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(TIMEOUT)
        return self._buffer, self._ended

    def _more(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        self._buffer += data
        self._ended = not data

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            if self._ended:
                if self._buffer:
                    raise Closed(f"in the middle: {self._buffer!r}")
                raise Closed
            self._more()
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def exactly(self, size: int) -> bytes:
        """Read so many bytes, or fewer where the connection ends before."""
        while len(self._buffer) < size and not self._ended:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


def _header(line: bytes) -> tuple[str, str]:
    found = _FIELD.fullmatch(line)
    if not found:
        raise Garbage(f"no header: {line!r}")
    return found[1].decode().lower(), found[2].strip().decode("latin-1")
