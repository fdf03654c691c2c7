"""Sessions of browsers: signed cookies, and records in the store that every replica knows."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time

from itsdangerous import BadSignature, URLSafeTimedSerializer

from qwenctl.config.deployment import AccessConfig
from qwenctl.core.identity import Identity
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..http.cookies import SESSION_COOKIE
from ..http.request import Request

log = logging.getLogger("qwenctl.proxy")

REFRESH = 0.4
"""How often the sessions are read from the store, in seconds: signing out ends a session on every
replica within a second."""

CLOCK_SECONDS = 5.0
"""How far the store's clock may run ahead of ours since the copy was read: a session that seems
still younger is from before the clock was set back."""

SEEN = 60.0
"""How often the time at which sessions were last seen is written, in seconds."""

MOST = 10_000
"""How many sessions there may be; beyond that, those that expire first end."""


class Sessions:
    """Identifies browsers by their sessions.

    No request waits for the store: the cookie's signature says when the session began, and a copy
    of the records whether it goes on. A session that is younger than the copy may be missing in it.
    While the store cannot be reached the last copy counts.
    """

    def __init__(self, store: Store, access: AccessConfig, secret: str) -> None:
        """``secret`` must be the same on every replica; a new password ends all sessions."""
        self._store = store
        self._seconds = access.session
        key = hmac.new(
            secret.encode(), b"cookie" + access.password_hash.encode(), hashlib.sha256
        ).hexdigest()
        self._serializer = URLSafeTimedSerializer(key, salt="qwenctl-session-2")
        self._lock = threading.Lock()
        self._version = "none yet"
        self._known: tuple[int, frozenset[str]] | None = None
        """When the records were read, in milliseconds of the store's clock, and their names."""
        self._read_at = 0.0
        """The same by the monotonic clock, in seconds."""
        self._seen: set[str] = set()
        self._noted_at = time.monotonic()

    def identify(self, request: Request) -> Identity | None:
        if self._known is None or (found := self._read(request)) is None:
            return None
        (session, created), (read_at, known) = found, self._known
        age = time.monotonic() - self._read_at + CLOCK_SECONDS
        if session not in known and not 0 <= created - read_at <= age * 1000:
            return None
        self._seen.add(session)
        return Identity(session=session[:8])

    def _read(self, request: Request) -> tuple[str, int] | None:
        """Return the name of the session's record and when it was made."""
        if not (cookie := request.cookie(SESSION_COOKIE)):
            return None
        try:
            token, created = self._serializer.loads(cookie, int(self._seconds))
        except BadSignature:
            return None
        return _name(token), created

    def begin(self) -> str:
        """Begin a session; return its cookie.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        token = secrets.token_urlsafe(16)
        created = self._store.begin_session(_name(token), self._seconds, limit=MOST)
        return str(self._serializer.dumps([token, created]))

    def end(self, request: Request) -> None:
        """End the session of a request, here at once.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        if found := self._read(request):
            self._store.end_session(found[0])
            self.refresh()

    def refresh(self) -> None:
        """Read the records.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        with self._lock:  # an earlier answer must not replace a later one
            seen: set[str] = set()
            if time.monotonic() - self._noted_at > SEEN:
                seen, self._seen, self._noted_at = self._seen, seen, time.monotonic()
            asked_at = time.monotonic()
            read_at, version, names = self._store.sessions(self._version, tuple(seen))
            if names is None:
                names = self._known[1] if self._known else frozenset()
            self._version, self._known = version, (read_at, names)
            self._read_at = asked_at

    def run(self, stop: threading.Event) -> None:
        """Read the records again and again until stopped."""
        while not stop.wait(REFRESH):
            try:
                self.refresh()
            except StoreUnavailable as error:
                log.debug("%s; going on with the sessions that are known", error)
            except Exception:
                log.exception("the sessions cannot be read; trying again")


def _name(token: str) -> str:
    """Return the name of a session's record, by which nobody can sign in."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]
