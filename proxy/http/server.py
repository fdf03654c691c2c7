"""The HTTP server: uvicorn, with bounded heads, and an answer's head and first piece in one write.

uvicorn writes the latter two separately, which costs a further system call for each request: a
tenth of all the time for small answers, and most answers are small.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .authority import host_problem, with_path
from .capacity import RETRY_AFTER, Capacity, Refusal
from .cut import cuttable
from .framing import coding_problem
from .half_closed import has_ended, watch
from .http10 import Http10
from .pace import AHEAD, Pace, Reader, drop
from .problem import PROBLEM_TYPE, problem_body
from .request import GONE
from .websocket_server import WebSocket

LARGE = 16 * 1024
"""A piece of so many bytes is written at once; joining it would only copy it."""

MAX_HEAD = 64 * 1024
"""The most bytes of a request beside its body: its head, or its trailers."""

MAX_URL = 32 * 1024
"""The longest target of a request, in bytes."""

MAX_FIELDS = 256
"""The most header lines of a request, trailers included."""

HEAD_SECONDS = 60.0
"""How long a client may take to send a request's head, in seconds."""

LAST_SECONDS = 0.5
"""How long an idle connection is kept at the end, in seconds, for a request that is on its way."""

LINGER = 1.0
"""How long a refused client may go on sending, in seconds: closing at once would reset the
connection before it has read the answer (RFC 9112 §9.6)."""


def protocols(capacity: Capacity) -> Callable[..., Reader]:
    """Return uvicorn's factory of protocols, for connections counted by ``capacity``."""

    def make(**parts: Any) -> Reader:
        protocol = Protocol(**parts)
        protocol.capacity = capacity
        protocol.reader = Reader(protocol)
        return protocol.reader

    return make


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds, on a transport that joins small writes.

    The only upgrade is to WebSocket, by GET; others are ignored, and the request is served.

    uvicorn and httptools have no bounds: an endless head would fill the memory, and a million
    header lines would block the event loop, before anybody has signed in.
    """

    capacity = Capacity()
    """All connections of this process."""
    reader: Reader | None = None
    """Who reads for this protocol, if not the transport itself."""
    flow: Pace

    _beside = 0
    """Bytes received since the last byte of a body."""
    _fields = 0
    _size = 0
    """Bytes of the present request beside its body, as far as they are parsed."""
    _in_body = False
    """Whether the present request's head is over."""
    _refused: Refusal | None = None
    _late: asyncio.TimerHandle | None = None
    _half_closed = False
    _ends = False
    """Whether the server shuts down."""
    _answered: RequestResponseCycle | None = None
    """The request that is being answered; ``cycle`` is the last that has arrived."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop, self))  # type: ignore[arg-type]
        self.flow = Pace(self.transport)
        if self.reader is not None:
            self.reader.pace = self.flow
        self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)
        refusal = self.capacity.add(self, self.client[0] if self.client else "")
        if refusal is not None:
            self._refused = refusal
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        self.capacity.remove(self)
        self._head_arrived()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has ended its side after a whole request; return whether to."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self.transport.close()
            return False
        self._client_ended(cycle)
        return True

    def _client_ended(self, cycle: RequestResponseCycle) -> None:
        if self._half_closed:
            return
        self._half_closed = True
        cycle.keep_alive = False
        joining: Any = self.transport
        watch(
            self.loop,
            self.transport,
            cycle,
            lambda: joining.written,
            pipelined=bool(self.pipeline),
        )

    def shutdown(self) -> None:
        """End after the present answer, or soon: a request may be on its way."""
        if self._ends:
            return
        self._ends = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_SECONDS, self._end_idle)
        else:
            self._is_last(self.cycle)

    def _end_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _is_last(self, cycle: RequestResponseCycle) -> None:
        """End the connection after this request, and say so (RFC 9112 §9.6)."""
        cycle.keep_alive = False
        cycle.default_headers = [*cycle.default_headers, (b"connection", b"close")]

    def hand_over(self, successor: WebSocket, transport: asyncio.Transport) -> None:
        """Let another protocol have the connection."""
        self.capacity.replace(self, successor)
        successor.capacity = self.capacity
        if self.reader is not None:
            self.reader.inner, self.reader.pace = successor, None
        else:
            transport.set_protocol(successor)

    def drop(self) -> None:
        drop(self.transport)

    def check(self, now: float) -> None:
        """Close a connection whose body or reader stands still."""
        if self.flow.reader_stalls(now):
            self.transport.abort()
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self.transport.is_closing():
            return
        if self.flow.read_paused and has_ended(self.transport):  # else the end is read
            if self.pipeline:
                self.flow.resume_reading()
            elif not cycle.response_started:
                self._client_ended(cycle)
        reads = cycle.more_body and not cycle.waiting_for_100_continue and not self.flow.read_paused
        if reads and not self.pipeline and self.flow.body_stalls(now) and not self._refused:
            self._refused = _BODY_TOO_SLOW
            self.send_400_response("")

    def data_received(self, data: bytes | memoryview) -> None:
        self.flow.moved_at = time.monotonic()
        self._beside += len(data)
        if self._refused is not None:
            if self._beside > 16 * MAX_HEAD:
                self.transport.abort()  # it neither stops nor reads
            return
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._beside > MAX_HEAD and self._refused is None:
            self._refused = _HEAD_TOO_LARGE
            self.send_400_response("")
        elif self._beside and self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _feed(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as end_of_head:
                    rest = rest[end_of_head.args[0] :]
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                if self.parser.get_method() == b"CONNECT":
                    self.send_400_response("this server is no forward proxy")
                    return
                self._ignore_upgrade()
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP request")

    def _should_upgrade(self) -> bool:
        if self.parser.get_method() != b"GET" or self.parser.get_http_version() == "1.0":
            return False  # RFC 6455 §4.1; RFC 9110 §7.8
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # an earlier request has yet to be answered, and its client to be watched
        return super()._should_upgrade()

    def _ignore_upgrade(self) -> None:
        """Read the head anew as if no upgrade were asked for (RFC 9110 §7.8).

        httptools ends such a request with its head, and takes its body for another protocol.
        """
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(t for t in tokens if t.lower() not in _UPGRADE)
            if name not in _UPGRADE:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"".join([*head, b"\r\n"]))

    def _is_ignored(self) -> bool:
        """Whether the present head is to be read anew by `_ignore_upgrade`."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def on_message_begin(self) -> None:
        self._fields = self._size = 0
        self._in_body = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        if self._size > MAX_URL:
            self._refuse(_URL_TOO_LONG)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._size += len(name) + len(value) + 4
        if self._fields > MAX_FIELDS or self._size > MAX_HEAD:
            self._refuse(_HEAD_TOO_LARGE)
        if not self._in_body:  # a trailer is no header (RFC 9110 §6.5.1)
            super().on_header(name, value.rstrip(b" \t"))  # RFC 9112 §5.1; llhttp leaves it in

    def on_headers_complete(self) -> None:
        self._head_arrived()
        if self._is_ignored():
            return
        self._in_body = True
        if (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            self._refuse((505, "bad_version", "this server speaks HTTP/1.1 and HTTP/1.0"))
        if b"#" in self.url:
            self._refuse((400, "bad_target", "the target has a fragment"))
        if why := host_problem(self.url, self.headers, version):
            self._refuse((400, "bad_host", why))
        if why := coding_problem(self.headers):
            self._refuse((501, "unknown_coding", why))
        if (refusal := self.capacity.begin(self, self.url)) is not None:
            self._refuse(refusal)
        self.url = with_path(self.url)
        super().on_headers_complete()
        if version == "1.0":
            self.cycle.keep_alive = self.parser.should_keep_alive()
        if self._ends:
            self._is_last(self.cycle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        cycle.scope[GONE] = self.transport.is_closing  # type: ignore[literal-required]
        if cycle.scope["http_version"] == "1.0":
            app = Http10(app, cycle)
        super()._start_asgi_task(cycle, cuttable(app, cycle))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self.capacity.end(self)
        super().on_response_complete()
        self.flow.ended()
        if self.cycle.response_complete and self.cycle.more_body and self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)  # the rest of the body

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)
        self.flow.arrived()
        if len(self.cycle.body) > AHEAD and not self.cycle.response_complete:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._head_arrived()
        if not self._is_ignored():
            super().on_message_complete()

    def _head_arrived(self) -> None:
        self._beside = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self._beside:
            self._refused = (408, "too_slow", "the request's head did not arrive in time")
            self.send_400_response("")
        else:
            self.transport.close()

    def _refuse(self, answer: tuple[int, str, str]) -> None:
        """End the parsing, after which uvicorn calls `send_400_response`."""
        self._refused = answer
        raise ValueError(answer)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is invalid or too large, and close the connection."""
        self._refused = self._refused or (400, "bad_request", msg)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False  # requests before this one are answered, then it ends
                return
            if self.pipeline or cycle.response_started:
                self.transport.close()
                return
            cycle.disconnected = True  # it is this request, and we answer it
            cycle.message_event.set()
        status, code, detail = self._refused
        body = problem_body(status, code, detail)
        later = f"retry-after: {RETRY_AFTER}\r\n" if status in (429, 503) else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: {PROBLEM_TYPE}\r\n{later}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


_UPGRADE = (b"upgrade", b"http2-settings")
"""Header fields, and options of Connection, that ask for another protocol."""

_HEAD_TOO_LARGE = (431, "head_too_large", "the request's headers are too large")
_BODY_TOO_SLOW = (408, "too_slow", "the request's body stopped arriving")
_URL_TOO_LONG = (414, "url_too_long", "the request's address is too long")


class _Joining:
    """A transport that joins small writes of the same step of the event loop."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, owner: Protocol
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._owner = owner
        self._pieces: list[bytes] = []
        self._ended = False
        self.written = 0
        """How many bytes have been written."""

    def write(self, data: bytes) -> None:
        if self._ended:
            return  # such as "100 Continue" to a client that has been refused
        self.written += len(data)
        if len(data) >= LARGE:
            self._flush()
            if not self._transport.is_closing():  # else the client has disconnected
                self._transport.write(data)
            return
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if self._transport.is_closing():
                return  # the client has disconnected
            self._transport.write(b"".join(pieces) if len(pieces) > 1 else pieces[0])

    def writelines(self, pieces: Any) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self._flush()
        self._ended = True
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: Any) -> None:
        self._owner.hand_over(protocol, self._transport)

    def abort(self) -> None:
        self._pieces.clear()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
