"""Recognise work by what the node sends, where its request has long been answered.

Open WebUI answers a question at once and sends the text over socket.io, which is otherwise full of
pings and presence. A rule's ``kept_on_by`` tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from .exchange import Exchange

HEAD = 4096
"""Characters of a message that are searched; the kind of an event comes first."""


class Listener:
    """Calls ``on_work`` for each message of the node that a rule's pattern is found in."""

    def __init__(self, pattern: re.Pattern[str], on_work: Callable[[], None]) -> None:
        self._pattern = pattern
        self._on_work = on_work

    def message(self, data: str | bytes) -> None:
        """Search a WebSocket message."""
        text = data if isinstance(data, str) else data[:HEAD].decode("latin-1")
        if self._pattern.search(text, 0, HEAD):
            self._on_work()

    def started(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None: ...

    def passed(self, piece: bytes) -> None:
        """Search a piece of an answer: of long polling, several messages together."""
        if piece and self._pattern.search(piece.decode("latin-1")):
            self._on_work()

    def ended(self, *, complete: bool) -> None: ...


def listener_of(exchange: Exchange, on_work: Callable[[], None]) -> Listener | None:
    """Return a listener if a rule says what to listen for in the answer to this request."""
    rules, request = exchange.gpu.rule_table, exchange.request
    if not rules.listens:
        return None
    pattern = rules.kept_on_by(request.method, request.sent_path, request.headers)
    return Listener(pattern, on_work) if pattern else None


def ask_plainly(exchange: Exchange) -> None:
    """Ask for an answer that can be searched: without compression."""
    raw = [pair for pair in exchange.request.raw_headers if pair[0].lower() != b"accept-encoding"]
    exchange.request = replace(exchange.request, raw_headers=raw)
