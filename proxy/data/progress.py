"""Tell a held streaming request how its GPU comes up, in comments of an event stream.

A client asks for it by ``Prefer: progress`` (RFC 7240). The status is then out before the node has
answered: 200, whatever follows. An error follows as an event. Without being asked, a held request
gets nothing before its answer, and the answer's own status.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qwenctl.config.deployment import Config
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import page_status
from qwenctl.store.store import Store

from ..http.request import Message, Request, Send
from .exchange import Exchange
from .listening import ask_plainly
from .recent_events import RecentEvents
from .request_buffer import RequestBuffer
from .snapshot_cache import PATIENCE, SnapshotCache

log = logging.getLogger("qwenctl.proxy")

GRACE = 0.5
"""A request that is held no longer than so many seconds gets its answer's own status."""

INTERVAL = 2.0
"""How often an unchanged comment is sent, in seconds: some clients give up after 5 s without a
byte."""

MAX_ANSWER = 256 * 1024
"""The longest answer that is put into an event, in bytes."""

EVENT_STREAM = "text/event-stream"

_LINE_END = re.compile(r"\r\n|\n|\r")
"""The ends of lines in an event stream; JSON may hold others of Unicode's."""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NDJSON = re.compile(r"/api/(chat|generate|pull|push|create)(/\d+)?/?$")
"""Paths of Ollama's own API: ``"stream": true`` asks for lines of JSON there, not for events."""

_ANTHROPIC = re.compile(r"/messages/?$")
"""Paths whose clients know an error by the event's name."""


def prefers_progress(request: Request) -> bool:
    """Return whether the client asks for progress by ``Prefer`` (RFC 7240 §2)."""
    preferences = _QUOTED.sub("", request.headers.get("prefer", "")).split(",")
    return "progress" in (re.split("[;=]", one)[0].strip().lower() for one in preferences)


def wants_events(request: Request, body: bytes | None) -> bool:
    """Return whether the client expects an event stream, by its headers or its whole body."""
    for one in request.headers.get("accept", "").lower().split(","):
        kind, *parameters = (part.strip() for part in one.split(";"))
        if kind == EVENT_STREAM and not any(re.match(r"q=0(\.0*)?$", p) for p in parameters):
            return True
    if body is None or _NDJSON.search(request.sent_path):
        return False
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("stream") is True


class EventStream:
    """An ASGI ``send`` into an event stream that has begun: what follows becomes its events.

    An event stream of the node passes unchanged. Any other answer, the node's or our own, becomes
    an event: a good answer its data, another one an error as the API's clients know it.
    """

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._names_errors = bool(_ANTHROPIC.search(request.sent_path))
        self._passes = False
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._said = ""
        self._said_at = 0.0

    async def begin(self) -> None:
        """Send the status and the headers."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"preference-applied", b"progress"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def comment(self, text: str) -> float:
        """Send a comment if it differs from the last, or that is `INTERVAL` seconds ago.

        Clients ignore it (a line that begins with a colon). Return the seconds until the next.
        """
        now = time.monotonic()
        left = self._said_at + INTERVAL - now
        if text == self._said and left > 0:
            return left
        self._said, self._said_at = text, now
        await self._write(f": {text}\n\n", more=True)
        return INTERVAL

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = {name.lower(): value for name, value in message["headers"]}
            kind = self._headers.get(b"content-type", b"").lower()
            encoded = self._headers.get(b"content-encoding", b"identity").lower() != b"identity"
            self._passes = self._good and kind.startswith(EVENT_STREAM.encode()) and not encoded
        elif self._passes:
            await self._send(message)
        else:
            piece = message.get("body", b"")
            self._body += piece[: MAX_ANSWER + 1 - len(self._body)]
            if not message.get("more_body"):
                await self._write(self._event(), more=False)

    @property
    def _good(self) -> bool:
        return 200 <= self._status < 300

    async def _write(self, text: str, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})

    def _event(self) -> str:
        """Return the whole answer as an event."""
        encoding = self._headers.get(b"content-encoding", b"").decode("latin-1")
        if len(self._body) > MAX_ANSWER:
            return self._error({"message": "the node's answer is no event stream, and too long"})
        if encoding not in ("", "identity"):
            return self._error({"message": f"the node's answer is encoded ({encoding})"})
        text = self._body.decode("utf-8", "replace")
        if not self._good:
            return self._error(error_of(text, self._status))
        lines = _LINE_END.split(text.rstrip("\r\n"))
        return "".join(f"data: {line}\n" for line in lines) + "\n" if text else ""

    def _error(self, error: dict[str, Any]) -> str:
        error = {"type": "api_error", "code": self._status, "status": self._status, **error}
        if (after := self._headers.get(b"retry-after", b"")).isdigit():
            error["retry_after"] = int(after)
        if self._names_errors:
            return f"event: error\ndata: {json.dumps({'type': 'error', 'error': error})}\n\n"
        return f"data: {json.dumps({'error': error})}\n\n"


def error_of(text: str, status: int) -> dict[str, Any]:
    """Return the error that an answer tells, in the members of the OpenAI API."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {"message": text.strip()[:2000] or f"the node answered with status {status}"}
    if not isinstance(body, dict):
        return {"message": text[:2000]}
    error = body.get("error", body)
    if not isinstance(error, dict):
        return {"message": str(error)}
    message = error.get("message") or error.get("detail") or text[:2000]
    known = {name: error[name] for name in ("type", "code", "param") if name in error}
    return {**known, "message": message if isinstance(message, str) else json.dumps(message)}


class Progress:
    """Tells held requests that ask for it how their GPU comes up. Used on the event loop only."""

    def __init__(self, config: Config, store: Store, snapshots: SnapshotCache) -> None:
        self._config = config
        self._events = RecentEvents(store)
        self._snapshots = snapshots
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._texts: dict[str, tuple[float, Phase, asyncio.Task[str]]] = {}

    def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def tell(self, exchange: Exchange, receive: RequestBuffer) -> float:
        """Send a comment, if this request is to get any now.

        Return after how many seconds to call again; a change of the GPU's state may come first.
        """
        request, held = exchange.request, time.monotonic() - exchange.began
        if not isinstance(exchange.send, EventStream):
            if exchange.scope["type"] != "http" or not prefers_progress(request):
                return float("inf")
            if held < GRACE:
                return GRACE - held
            body = receive.whole
            if request.method == "HEAD" or not wants_events(request, body):
                return INTERVAL if body is None else float("inf")
            exchange.send = EventStream(exchange.send, request)
            ask_plainly(exchange)
            await exchange.send.begin()
        return await exchange.send.comment(await self._text(exchange.name))

    async def _text(self, name: str) -> str:
        """Return a GPU's progress as JSON, at most half an interval old."""
        snapshot, now = self._snapshots.peek(name).snapshot, time.monotonic()
        known = self._texts.get(name)
        if known is None or now - known[0] > INTERVAL / 2 or known[1] is not snapshot.phase:
            known = (now, snapshot.phase, asyncio.ensure_future(self._make(name, snapshot)))
            self._texts[name] = known
        try:
            return await asyncio.wait_for(asyncio.shield(known[2]), PATIENCE)
        except Exception as error:  # whatever the cause, the request waits on
            log.debug("%s: no progress for a held request: %r", name, error)
            return json.dumps({"phase": snapshot.phase.value})

    async def _make(self, name: str, snapshot: Snapshot) -> str:
        def learned() -> dict[str, Any]:
            events = self._events.of(name)
            return page_status(snapshot, events, self._config.gpu[name], may_wake=True)

        loop = asyncio.get_running_loop()
        return json.dumps(progress_of(await loop.run_in_executor(self._threads, learned)))


def progress_of(status: dict[str, Any]) -> dict[str, Any]:
    """Return what a client is told of a page's status."""
    elapsed, eta = status["elapsed_seconds"], status["eta_seconds"]
    percent = None
    if elapsed is not None and eta is not None:
        percent = min(99, int(100 * elapsed / max(1.0, elapsed + eta)))
    told = {"phase": status["phase"], "percent": percent, "eta_seconds": eta}
    if (node := status["progress"]) is not None:
        told["node"] = {key: node[key] for key in ("phase", "percent", "text")}
    if status["failure"] is not None:
        told["failure"] = status["failure"]
    return told
