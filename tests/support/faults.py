"""An HTTP proxy in front of any cloud API, real or fake, that makes chosen calls go wrong.

It knows a call by its ``Action`` parameter, in the query string (Alibaba Cloud) or in the form body
(AWS), and notes every call that came.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

__all__ = ["Answered", "Call", "Fault", "FaultProxy", "ec2_error"]

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call; the constructors name the common ones.

    Attributes:
        action: the API action, or ``*`` for any.
        times: how often; None: always.
        forward: the upstream gets the call all the same.
        delay: seconds until the answer (or the cut).
        before: seconds until the upstream gets the call.
        cut: the connection is reset instead of an answer.
        drip: the answer comes byte by byte, this many seconds apart, until ``delay`` is over.
        answer: instead of the upstream's.
    """

    action: str = "*"
    times: int | None = None
    forward: bool = False
    delay: float = 0.0
    before: float = 0.0
    cut: bool = False
    drip: float = 0.0
    answer: Answered | None = None

    @classmethod
    def error(cls, answer: Answered, action: str = "*", times: int | None = None) -> Fault:
        """This answer, and the upstream hears nothing."""
        return cls(action, times, answer=answer)

    @classmethod
    def slow(cls, seconds: float, action: str = "*", times: int | None = None) -> Fault:
        """The upstream takes the call at once; its answer comes late."""
        return cls(action, times, forward=True, delay=seconds)

    @classmethod
    def dripping(cls, seconds: float, action: str = "*", times: int | None = None) -> Fault:
        """The answer never ends, though no byte is late."""
        return cls(action, times, forward=True, delay=seconds, drip=0.2)

    @classmethod
    def cut_before(cls, action: str = "*", times: int | None = None) -> Fault:
        """The connection breaks before the upstream hears of the call."""
        return cls(action, times, cut=True)

    @classmethod
    def cut_after(cls, action: str = "*", times: int | None = None) -> Fault:
        """The connection breaks after the upstream has accepted the call."""
        return cls(action, times, forward=True, cut=True)

    @classmethod
    def garbage(cls, action: str = "*", times: int | None = None) -> Fault:
        """An answer of something that is no cloud API, such as a hotel's sign-in page."""
        page = b"<html><body><h1>Welcome</h1><p>Please sign in</p></body></html>"
        return cls(action, times, answer=Answered(200, page, {"Content-Type": "text/html"}))

    @classmethod
    def unavailable(cls, action: str = "*", times: int | None = None) -> Fault:
        """503 of a load balancer: no error code, no request id."""
        return cls(action, times, answer=Answered(503, b"no server is available"))


@dataclass(frozen=True)
class Call:
    """One call that came: ``status`` is what the caller got, 0 if the connection was cut, and
    ``accepted`` whether the upstream got it and did not refuse."""

    action: str
    time: float
    status: int
    accepted: bool


class FaultProxy:
    """A proxy to ``upstream`` (``http://host:port``) on a free port of 127.0.0.1; a context manager."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._calls: list[Call] = []
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, fault: Fault) -> None:
        """From now on; the first fault that fits a call is played."""
        with self._lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def forget(self) -> None:
        """No more faults, and no calls noted."""
        self.heal()
        with self._lock:
            self._calls.clear()

    def calls(self, action: str = "*") -> list[Call]:
        """The calls that came, oldest first."""
        with self._lock:
            return [call for call in self._calls if action in ("*", call.action)]

    def accepted(self, action: str) -> int:
        """How many calls the upstream has accepted."""
        return sum(call.accepted for call in self.calls(action))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    # What the handler asks

    def take(self, action: str) -> Fault | None:
        """The fault for this call, now played once more."""
        with self._lock:
            for place, fault in enumerate(self._faults):
                if fault.action not in ("*", action) or fault.times == 0:
                    continue
                if fault.times is not None:
                    self._faults[place] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def note(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the proxy lives."""
        self._closed.wait(seconds)

    def forward(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """The upstream's answer."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            return Answered(answer.status, answer.read(), kept)
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the caller did not wait for the end: that is what the faults are for


def _handler(proxy: FaultProxy) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def _handle(self) -> None:
            came = time.time()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action = _action(self.path, body)
            fault = proxy.take(action) or Fault(forward=True)
            proxy.pause(fault.before)
            answer, accepted = fault.answer or Answered(502), False
            if fault.forward:
                theirs = proxy.forward(self.command, self.path, dict(self.headers), body)
                accepted = theirs.status < 400
                answer = fault.answer or theirs
            # Noted before the answer goes out, so that whoever has it finds it noted.
            proxy.note(Call(action, came, 0 if fault.cut else answer.status, accepted))
            if not fault.drip:
                proxy.pause(fault.delay)
            if fault.cut:
                self._cut()
                return
            self.send_response_only(answer.status)
            headers = {"Date": self.date_time_string(), **answer.headers}
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if fault.drip:
                self._drip(answer.body, fault)
                return
            self.wfile.write(answer.body)

        def _drip(self, body: bytes, fault: Fault) -> None:
            for place in range(min(len(body) - 1, int(fault.delay / fault.drip))):
                self.wfile.write(body[place : place + 1])
                proxy.pause(fault.drip)
            self._cut()

        def _cut(self) -> None:
            self.close_connection = True
            # A reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _action(path: str, body: bytes) -> str:
    for text in (urlsplit(path).query, body.decode("latin-1")):
        if found := parse_qs(text).get("Action"):
            return found[0]
    return ""


def ec2_error(
    code: str, message: str = "", status: int = 400, *, date: str = "", request_id: str = ""
) -> Answered:
    """An error as EC2 says it; ``date`` replaces the true one in the HTTP header."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error>'
        f"<Code>{escape(code)}</Code><Message>{escape(message or code)}</Message></Error></Errors>"
        f"<RequestID>{request_id or uuid.uuid4()}</RequestID></Response>"
    )
    headers = {"Content-Type": "text/xml;charset=UTF-8"}
    return Answered(status, body.encode(), {**headers, **({"Date": date} if date else {})})
