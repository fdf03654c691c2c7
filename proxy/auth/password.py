"""Check the shared password: few at a time, and none of a client that is throttled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from qwenctl.store.store import Store

from .throttle import Throttle

MOST_WAITING = 4
"""How many passwords may be checked or wait for it: each holds a thread of the pages, which go on
with the others."""


class Busy(Exception):
    """Too many passwords are being checked at this moment."""


class SharedPassword:
    """The password that all browsers share.

    argon2 takes 64 MiB and a core for each, so that passwords are checked one at a time, in a
    thread of their own.
    """

    def __init__(self, argon2_hash: str, store: Store) -> None:
        self._hash = argon2_hash
        self._throttle = Throttle(store)
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="password")

    def check(self, password: str, client: str) -> bool:
        """Return whether it is the password. Slow.

        Raises:
            Throttled: too many wrong passwords.
            Busy: too many at this moment.
            StoreUnavailable: Redis cannot be reached.
        """
        self._throttle.check(client)
        if not self._places.acquire(blocking=False):
            raise Busy
        try:
            return self._thread.submit(self._attempt, password, client).result()
        finally:
            self._places.release()

    def _attempt(self, password: str, client: str) -> bool:
        self._throttle.begin(client)
        if not self._verify(password):
            return False
        self._throttle.succeeded(client)
        return True

    def _verify(self, password: str) -> bool:
        try:
            return PasswordHasher().verify(self._hash, password)
        except (Argon2Error, InvalidHashError):
            return False
