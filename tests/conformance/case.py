"""What a row of the conformance tables says: bytes sent, and what both sides must then have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, Union

HOST = "Host: gpu.example"
CLIENT = "127.0.0.9"
"""Where clients connect from: an address that no plane trusts."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
"""What the node answers unless a case says otherwise."""


def raw(*lines: str | bytes) -> bytes:
    """Join lines with CRLF; the last one gets none."""
    return b"\r\n".join(x if isinstance(x, bytes) else x.encode("latin-1") for x in lines)


@dataclass(frozen=True)
class Await:
    """Wait for an answer of this status, such as 100, before the next bytes are sent."""

    status: int


@dataclass(frozen=True)
class Pause:
    """Wait, so that what follows comes in a segment of its own."""

    seconds: float = 0.03


@dataclass(frozen=True)
class HalfClose:
    """Send no more, but go on reading (shutdown of the sending side)."""


Step = Union[bytes, Await, Pause, HalfClose]

Value = Union[str, "tuple[str, ...]", "re.Pattern[str]", None]

Headers = Mapping[str, Value]
"""By lower-case name: the values joined by a comma, a pattern of them, or each line's value; None:
no such header."""

FROM_CLIENT = re.compile(r"127\.0\.0\.9(, 127\.0\.0\.1)?")
"""X-Forwarded-For of a client that has sent none: its address, and that of a front."""


@dataclass(frozen=True)
class Reply:
    """What the node sends for a request. ``{accept}`` stands for the WebSocket key's answer."""

    content: bytes = OK
    closes: bool = False
    early: bool = False
    """Whether it answers without reading the body."""


@dataclass(frozen=True)
class Got:
    """A request as the node must have received it."""

    method: str
    target: str
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    framing: str = ""
    """``length``, ``chunked`` or ``none``; empty: any of them."""
    trailers: Headers = field(default_factory=dict)
    whole: bool = True
    """Whether it ends as its framing says; a request that was cut must not look whole."""


@dataclass(frozen=True)
class Answer:
    """An answer as the client must get it, final or interim."""

    status: int | Sequence[int] = 200
    body: bytes | None = None
    headers: Headers = field(default_factory=dict)
    framing: str = ""
    """``length``, ``chunked``, ``close`` or ``none``; empty: any of them."""
    whole: bool = True
    """Whether its body ends as its framing says; a broken answer must not look whole."""


@dataclass(frozen=True)
class Outcome:
    """What must become of a case's bytes, on both sides."""

    node: tuple[Got, ...] = ()
    client: tuple[Answer, ...] = ()
    closes: bool | None = None
    """Whether the connection is closed after the last answer; None: as it likes."""
    after_upgrade: bytes | None = None
    """What the client gets after a 101."""
    any_reading: bool = False
    """Whether all that counts is that the node got nothing that could be read otherwise."""
    finished: bool = True
    """Whether a request may reach the node as a whole then."""


T = TypeVar("T")

REFUSALS = (400, 405, 408, 411, 413, 414, 417, 421, 426, 431, 501, 505)


def refused(*status: int) -> Outcome:
    """The node gets nothing, and the client an error on a connection that is then closed.

    Which error is the server's choice in most cases (RFC 9112 §2.2, §6.3).
    """
    return Outcome(client=(Answer(status or REFUSALS),), closes=True)


ANY_READING = Outcome(any_reading=True)
"""For servers in front that are lenient: what reaches the node can be read in one way only."""

UNFINISHED = Outcome(any_reading=True, finished=False)
"""The same, and no request that reaches the node ends."""

NO_ANSWER = Outcome(closes=True)
"""The connection is closed without a word."""


def passes(got: Got | tuple[Got, ...], *answers: Answer, closes: bool | None = None) -> Outcome:
    """The node gets these requests and no other; the client its answers."""
    node = got if isinstance(got, tuple) else (got,)
    return Outcome(node, answers or (Answer(200, b"ok"),) * len(node), closes)


@dataclass(frozen=True)
class Case:
    """A row of a table.

    Args:
        name: what is sent.
        rfc: the section that says what must become of it.
        send: what the client sends, as it stands on the wire.
        outcomes: what is right; of several, any.
        reply: what the node answers to each request, in turn; the last one goes on.
        on: the planes that it is for, if not all.
        but: other outcomes on a plane, or behind a front.
        fails: why it fails today, by plane.
    """

    name: str
    rfc: str
    send: bytes | tuple[Step, ...]
    outcomes: Outcome | tuple[Outcome, ...]
    reply: Reply | tuple[Reply, ...] = Reply()
    on: tuple[str, ...] = ("direct", "nginx-gate", "nginx-tls", "caddy-gate", "caddy-tls")
    but: Mapping[str, Outcome | tuple[Outcome, ...]] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.send,) if isinstance(self.send, bytes) else self.send

    @property
    def replies(self) -> tuple[Reply, ...]:
        return (self.reply,) if isinstance(self.reply, Reply) else self.reply

    def allowed(self, plane: str) -> tuple[Outcome, ...]:
        """The outcomes that are right on a plane."""
        found = _for(plane, self.but)
        outcomes = self.outcomes if found is None else found
        return (outcomes,) if isinstance(outcomes, Outcome) else outcomes

    def failure(self, plane: str) -> str | None:
        """Why it fails on a plane today."""
        return self.fails.get(plane)


def _for(plane: str, by_plane: Mapping[str, T]) -> T | None:
    """Return a plane's value, or that of its front, such as ``nginx``."""
    for name in (plane, plane.partition("-")[0]):
        if name in by_plane:
            return by_plane[name]
    return None
