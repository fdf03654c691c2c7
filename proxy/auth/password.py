"""Sign browsers in by the shared password."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from itsdangerous import BadSignature, URLSafeTimedSerializer

from qwenctl.config.deployment import AccessConfig

from ..http.cookies import SESSION_COOKIE
from ..http.request import Request
from .identity import Identity
from .throttle import Throttle

__all__ = ["SharedPassword"]


class SharedPassword:
    """Identifies browsers by the signed cookie that the shared password gave them."""

    def __init__(self, access: AccessConfig, secret: str) -> None:
        """``secret`` must be the same on every replica; cookies also end when the password changes."""
        self._hash = access.password_hash
        self._seconds = access.session
        key = hmac.new(secret.encode(), b"cookie" + self._hash.encode(), hashlib.sha256).hexdigest()
        self._serializer = URLSafeTimedSerializer(key, salt="qwenctl-session")
        self._throttle = Throttle()

    def identify(self, request: Request) -> Identity | None:
        if not (cookie := request.cookie(SESSION_COOKIE)):
            return None
        try:
            return Identity(session=str(self._serializer.loads(cookie, int(self._seconds))))
        except BadSignature:
            return None

    def sign_in(self, password: str, client: str) -> str | None:
        """Return the value of a new session cookie, or None for a wrong password. Slow.

        Raises:
            Throttled: too many wrong passwords.
        """
        from argon2 import PasswordHasher
        from argon2.exceptions import Argon2Error, InvalidHashError

        with self._throttle.attempt(client) as attempt:
            try:
                PasswordHasher().verify(self._hash, password)
            except (Argon2Error, InvalidHashError):
                return None
            attempt.succeeded()
        return self._serializer.dumps(secrets.token_hex(4))
