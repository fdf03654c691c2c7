"""Limit the rate of password attempts, per client and in total."""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = [
    "Throttle",
]


class Throttled(Exception):
    """Too many attempts; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many attempts; try again in {seconds:.0f} s")
        self.seconds = seconds


class Throttle:
    """Slows the guessing of passwords: so many wrong ones a minute from one address, and in all.

    When all have failed too often together, an address that has not failed still gets one try, so
    that nobody can lock the others out. Only one password is checked at a time (argon2 takes 64 MiB
    for each).
    """

    PER_CLIENT = 5
    IN_ALL = 30
    WINDOW = 60.0

    def __init__(self) -> None:
        self._failures: deque[tuple[float, str]] = deque()
        self._lock = threading.Lock()

    def attempt(self, client: str) -> _Attempt:
        return _Attempt(self, client)

    def check(self, client: str) -> None:
        """Raises `Throttled` if this client, or everybody, has failed too often."""
        now = time.monotonic()
        while self._failures and now - self._failures[0][0] > self.WINDOW:
            self._failures.popleft()
        mine = [when for when, who in self._failures if who == client]
        if len(mine) >= self.PER_CLIENT:
            raise Throttled(self.WINDOW - (now - mine[0]))
        if mine and len(self._failures) >= self.IN_ALL:
            raise Throttled(self.WINDOW - (now - self._failures[0][0]))


class _Attempt:
    def __init__(self, throttle: Throttle, client: str) -> None:
        self._throttle, self._client, self._ok = throttle, client, False

    def succeeded(self) -> None:
        self._ok = True

    def __enter__(self) -> _Attempt:
        self._throttle._lock.acquire()
        try:
            self._throttle.check(self._client)
        except Throttled:
            self._throttle._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ok:
            self._throttle._failures.append((time.monotonic(), self._client))
        self._throttle._lock.release()
