"""Who is asking. One small Protocol, so that other ways to sign in can take its place."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from itsdangerous import BadSignature, URLSafeTimedSerializer

from qwenctl.config import AccessConfig, Config

from .request import Request

__all__ = [
    "COOKIE",
    "KEY_PREFIX",
    "VISIT_COOKIE",
    "VISIT_SLOTS",
    "Authenticator",
    "Identity",
    "NoAccessControl",
    "PasswordAccess",
    "Throttle",
    "visit_slot",
]

COOKIE = "qwenctl_session"

VISIT_COOKIE = "qwenctl_visit"
"""Tells apart the waiting pages of visitors who need not sign in and share an address: `visit_slot`.
Nobody has to send it."""

VISIT_SLOTS = "0123456789abcdef"
"""What that cookie may say. So few, because each is a lease that anybody may ask for."""

KEY_PREFIX = "qk_"


@dataclass(frozen=True)
class Identity:
    """Somebody who may use the GPU."""

    kind: Literal["anonymous", "browser", "key"]
    name: str

    @property
    def lease(self) -> str:
        """The name of this client's demand lease."""
        return f"request:{'' if self.kind == 'anonymous' else f'{self.kind}:'}{self.name}"


class Authenticator(Protocol):
    """Decides who may use the GPU. Must be quick: it runs on the event loop for each request."""

    def identify(self, request: Request) -> Identity | None:
        """Who this is, or None for somebody who has to sign in first."""
        ...

    def sign_in(self, password: str, client: str) -> str | None:
        """The value of a new session cookie, or None for a wrong password. May be slow.

        Raises:
            Throttled: too many wrong passwords.
        """
        ...


@lru_cache(maxsize=1024)
def _anonymous(name: str) -> Identity:
    return Identity("anonymous", name)


class Throttled(Exception):
    """Too many attempts; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many attempts; try again in {seconds:.0f} s")
        self.seconds = seconds


class NoAccessControl:
    """Everybody who reaches the proxy may use it."""

    def identify(self, request: Request) -> Identity | None:
        return _anonymous(request.client or "local")

    def sign_in(self, password: str, client: str) -> str | None:  # noqa: ARG002
        return None


class PasswordAccess:
    """One shared password for browsers (signed cookie), API keys for clients."""

    def __init__(self, access: AccessConfig, secret: str) -> None:
        """``secret`` must be the same on every replica; cookies also end when the password changes."""
        self._hash = access.password_hash
        self._session = access.session
        self._keys = {key.hash.removeprefix("sha256:"): key.name for key in access.keys}
        key = hmac.new(secret.encode(), b"cookie" + self._hash.encode(), hashlib.sha256).hexdigest()
        self._serializer = URLSafeTimedSerializer(key, salt="qwenctl-session")
        self._throttle = Throttle()

    def identify(self, request: Request) -> Identity | None:
        key = api_key(request.headers)
        if key and (name := self._keys.get(hashlib.sha256(key.encode()).hexdigest())):
            return Identity("key", name)
        cookie = _cookie(request.headers.get("cookie", ""))
        if cookie:
            try:
                session = self._serializer.loads(cookie, max_age=int(self._session))
            except BadSignature:
                return None
            return Identity("browser", str(session))
        return None

    def sign_in(self, password: str, client: str) -> str | None:
        from argon2 import PasswordHasher
        from argon2.exceptions import Argon2Error, InvalidHashError

        with self._throttle.attempt(client) as attempt:
            try:
                PasswordHasher().verify(self._hash, password)
            except (Argon2Error, InvalidHashError):
                return None
            attempt.succeeded()
        return self._serializer.dumps(secrets.token_hex(4))


def api_key(headers: dict[str, str]) -> str:
    """The qwenctl API key a client sent, or empty."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip().startswith(KEY_PREFIX):
        return token.strip()
    key = headers.get("x-api-key", "")
    return key if key.startswith(KEY_PREFIX) else ""


_VISIT_PATTERN = re.compile(rf"(?:^|;)\s*{VISIT_COOKIE}=([{VISIT_SLOTS}])\s*(?:;|$)")
_COOKIE_PATTERN = re.compile(rf"(?:^|;)\s*{COOKIE}=([^;\s]*)")


def _cookie(header: str) -> str:
    found = _COOKIE_PATTERN.search(header)
    return found.group(1) if found else ""


def visit_slot(request: Request) -> str:
    """Which of the visitors of its address this is, one of `VISIT_SLOTS`; empty: not known."""
    found = _VISIT_PATTERN.search(request.headers.get("cookie", ""))
    return found.group(1) if found else ""


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


def make_authenticator(config: Config) -> Authenticator:
    """The configured way to sign in."""
    if config.access.mode == "none":
        return NoAccessControl()
    return PasswordAccess(config.access, config.read_node_secret())
