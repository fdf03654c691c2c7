"""Whether a node answers: when bytes last passed between it and this proxy."""

from __future__ import annotations

import time


class Silence:
    """For how long a node has answered nothing that it was asked.

    Requests that come and go unanswered do not shorten it: only a byte of the node does.
    """

    __slots__ = ("_pending", "_since")

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._pending = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def asked(self) -> None:
        """Note that the node has something to answer."""
        if not self._pending:
            self._pending, self._since = True, time.monotonic()

    def heard(self, now: float) -> None:
        self._pending, self._since = False, now

    def answers(self) -> None:
        """Note that the node answers something else, while it has this to answer."""
        self._since = time.monotonic()


class Link:
    """A request's connection to the node."""

    __slots__ = ("_silence", "moved_at", "started")

    def __init__(self, silence: Silence) -> None:
        self._silence = silence
        self.moved_at = time.monotonic()
        """When the request began, or a byte last passed (monotonic)."""
        self.started = False
        """Whether the node has begun to answer."""

    @property
    def idle(self) -> float:
        """Seconds since a byte last passed."""
        return time.monotonic() - self.moved_at

    def sent(self) -> None:
        """Note that the node takes a piece of the request."""
        self.moved_at = time.monotonic()

    def asked(self) -> None:
        """Note that the node has the whole request, or a message."""
        self._silence.asked()

    def heard(self) -> None:
        """Note that a byte of the node has arrived."""
        self.moved_at = now = time.monotonic()
        self.started = True
        self._silence.heard(now)
