"""The node's service: it keeps the bytes of each request, reads them strictly, and answers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import h11

from tests.conformance.case import OK, Reply

IGNORED = ("/ready", "/barrier")
"""Targets of probes and of the harness itself."""

WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""What a WebSocket's key is hashed with (RFC 6455 §1.3)."""

_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*")
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\x00-\x20\x7f]+ HTTP/1\.[01]")


@dataclass
class Received:
    """A request as the node read it."""

    raw: bytes = b""
    """Its head."""
    method: str = ""
    target: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    whole: bool = False
    fault: str = ""
    """Why another reader could understand it otherwise, or not at all."""

    @property
    def framing(self) -> str:
        names = {name for name, _ in self.headers}
        if "transfer-encoding" in names:
            return "chunked"
        return "length" if "content-length" in names else "none"


class Recorder:
    """A server whose connections are threads."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        self._lock = threading.Lock()
        self._received: list[Received] = []
        self._replies: list[Reply] = [Reply()]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def expect(self, replies: Sequence[Reply]) -> None:
        """Forget what came so far, and answer so from now on."""
        with self._lock:
            self._received, self._replies = [], list(replies)

    @property
    def received(self) -> list[Received]:
        """What has come since."""
        with self._lock:
            return list(self._received)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            rest = b""
            while True:
                ended, rest = _Conversation(self, connection, rest).run()
                if ended:
                    return

    def note(self, request: Received) -> Reply:
        """Keep a request, and return what is to be answered."""
        with self._lock:
            if request.target in IGNORED and not request.fault:
                return Reply()
            self._received.append(request)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


class _Conversation:
    """One request on a connection, and its answer."""

    def __init__(self, recorder: Recorder, connection: socket.socket, rest: bytes) -> None:
        self._recorder = recorder
        self._connection = connection
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._request = Received()
        self._head = b""
        if rest:
            self._feed(rest)

    def _feed(self, data: bytes) -> None:
        if not self._request.method:
            self._head += data
        self._parser.receive_data(data)

    def run(self) -> tuple[bool, bytes]:
        """Answer the next request; return whether it was the last one, and what came after it."""
        reply = Reply()
        noted = False
        try:
            while not self._request.whole:
                event = self._parser.next_event()
                if event is h11.NEED_DATA:
                    if self._parser.they_are_waiting_for_100_continue:
                        self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                        self._parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                    data = self._connection.recv(1 << 16)
                    if not data and not self._head:
                        return True, b""
                    self._feed(data)
                elif isinstance(event, h11.Request):
                    self._begin(event)
                    reply, noted = self._recorder.note(self._request), True
                    if reply.early:
                        break
                elif isinstance(event, h11.Data):
                    self._request.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._request.trailers = _pairs(event.headers)
                    self._request.whole = True
                else:
                    return True, b""
        except h11.RemoteProtocolError as error:
            self._request.raw = self._request.raw or self._head
            if not noted:
                self._request.fault = f"no HTTP request: {error}"
                self._recorder.note(self._request)
            return True, b""
        return self._answer(reply)

    def _begin(self, event: h11.Request) -> None:
        request = self._request
        request.raw = self._head[: self._head.find(b"\r\n\r\n") + 4]
        request.method, request.target = event.method.decode(), event.target.decode("latin-1")
        request.headers = _pairs(event.headers)
        request.fault = fault_of(self._head)

    def _answer(self, reply: Reply) -> tuple[bool, bytes]:
        key = dict(self._request.headers).get("sec-websocket-key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET).digest())
        content = reply.content.replace(b"{accept}", accept)
        if content == OK and self._request.method == "HEAD":
            content = content.removesuffix(b"ok")
        self._connection.sendall(content)
        if reply.content.startswith(b"HTTP/1.1 101"):
            while self._connection.recv(1 << 16):
                pass
            return True, b""
        if reply.closes or reply.early:
            self._linger()
            return True, b""
        return False, self._parser.trailing_data[0]

    def _linger(self) -> None:
        """Let the peer read the answer before a reset could discard it (RFC 9112 §9.6)."""
        self._connection.shutdown(socket.SHUT_WR)
        self._connection.settimeout(1.0)
        while self._connection.recv(1 << 16):
            pass


def _pairs(headers: h11.Headers | list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode("latin-1")) for name, value in headers]


def fault_of(head: bytes) -> str:
    """Return what in a request's head a lenient reader could understand otherwise, or empty.

    Stricter than h11, which takes a bare LF for the end of a line and joins folded lines.
    """
    head, end, _ = head.partition(b"\r\n\r\n")
    if not end:
        return "the head's end is not CRLF CRLF (RFC 9112 §2.1)"
    line, *fields = head.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(line):
        return f"request line {line!r} (RFC 9112 §3)"
    for one in fields:
        if not _FIELD.fullmatch(one):
            return f"header line {one!r} (RFC 9112 §5)"
    names = [one.partition(b":")[0].lower() for one in fields]
    lengths = [
        one.partition(b":")[2].strip()
        for one in fields
        if one.lower().startswith(b"content-length:")
    ]
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        return f"lengths {lengths!r} (RFC 9112 §6.3)"
    if lengths and b"transfer-encoding" in names:
        return "a length and a transfer coding (RFC 9112 §6.1)"
    if names.count(b"host") != 1:
        return "not one Host (RFC 9112 §3.2)"
    return ""
