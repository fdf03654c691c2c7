"""A shared password for browsers and API keys for clients."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from itsdangerous import BadSignature, URLSafeTimedSerializer

from qwenctl.config.deployment import AccessConfig, Config

from ..http.cookies import SESSION_COOKIE
from ..http.request import Request
from .authenticator import Authenticator, NoAccessControl
from .identity import Identity, api_key
from .throttle import Throttle

__all__ = [
    "PasswordAccess",
]


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
        cookie = request.cookie(SESSION_COOKIE)
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


def make_authenticator(config: Config) -> Authenticator:
    """The configured way to sign in."""
    if config.access.mode == "none":
        return NoAccessControl()
    return PasswordAccess(config.access, config.read_node_secret())
