"""Check the shared password, and limit the rate of attempts, per client and in total."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError


class Throttled(Exception):
    """Too many attempts; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many attempts; try again in {seconds:.0f} s")
        self.seconds = seconds


class Throttle:
    """Limits wrong passwords per minute, from one address and in total.

    After too many failures in total, an address that has not failed still gets one try, so that
    nobody can lock others out. Passwords are checked one at a time: argon2 takes 64 MiB for each.
    """

    PER_CLIENT = 5
    IN_ALL = 30
    WINDOW = 60.0

    def __init__(self) -> None:
        self._failures: deque[tuple[float, str]] = deque()
        self._lock = threading.Lock()

    def check(self, client: str) -> None:
        """Raise `Throttled` if this client, or all together, failed too often."""
        now = time.monotonic()
        while self._failures and now - self._failures[0][0] > self.WINDOW:
            self._failures.popleft()
        mine = [when for when, who in self._failures if who == client]
        if len(mine) >= self.PER_CLIENT:
            raise Throttled(self.WINDOW - (now - mine[0]))
        if mine and len(self._failures) >= self.IN_ALL:
            raise Throttled(self.WINDOW - (now - self._failures[0][0]))

    def attempt(self, client: str, verify: Callable[[], bool]) -> bool:
        """Return the result of ``verify``; a False, or an exception, counts as a failure.

        Raises:
            Throttled: too many failures.
        """
        with self._lock:
            self.check(client)
            succeeded = False
            try:
                succeeded = verify()
            finally:
                if not succeeded:
                    self._failures.append((time.monotonic(), client))
            return succeeded


class SharedPassword:
    """The password that all browsers share."""

    def __init__(self, argon2_hash: str) -> None:
        self._hash = argon2_hash
        self._throttle = Throttle()

    def check(self, password: str, client: str) -> bool:
        """Return whether it is the password. Slow.

        Raises:
            Throttled: too many wrong passwords.
        """
        return self._throttle.attempt(client, lambda: self._verify(password))

    def _verify(self, password: str) -> bool:
        try:
            return PasswordHasher().verify(self._hash, password)
        except (Argon2Error, InvalidHashError):
            return False
