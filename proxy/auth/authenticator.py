"""Identify visitors: a chain of authenticators, of which the first that knows a visitor counts."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol, TypeGuard

from qwenctl.config.authenticators import make_authenticator
from qwenctl.config.deployment import ApiKey, Config
from qwenctl.core.identity import KEY_PREFIX, USE, WAKE_ALWAYS, Identity
from qwenctl.lib.text import in_words
from qwenctl.store.store import Store

from ..http.request import Request
from .password import SharedPassword
from .sessions import Sessions

log = logging.getLogger("qwenctl.proxy")

MAX_NAME = 200
"""Longest name that a third party may give, in characters: leases are named by it."""

LOG_INTERVAL = 60.0
"""How often the failures of a third party's authenticator are logged, in seconds."""


class Authenticator(Protocol):
    """Knows some of the visitors."""

    def identify(self, request: Request) -> Identity | None:
        """Return the visitor's identity, or None for a visitor it does not know.

        It is called on the event loop for each request, and in threads: it must be quick.
        """
        ...


class ApiKeys:
    """Identifies clients by the API keys of the configuration."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        scopes = frozenset({USE, WAKE_ALWAYS})
        self._clients = {
            key.hash.removeprefix("sha256:"): Identity(key_id=key.name, scopes=scopes)
            for key in keys
        }

    def identify(self, request: Request) -> Identity | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
        if not key.startswith(KEY_PREFIX):
            key = request.headers.get("x-api-key", "")
        if not key.startswith(KEY_PREFIX):
            return None
        return self._clients.get(hashlib.sha256(key.encode()).hexdigest())


class AnyAddress:
    """Identifies everybody who reaches the proxy by their address."""

    def identify(self, request: Request) -> Identity | None:
        return _by_address(request.client or "local")


@lru_cache(maxsize=1024)
def _by_address(address: str) -> Identity:
    return Identity(address=address)


class ThirdParty:
    """Contains the failures of a third party's authenticator: it then identifies nobody."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: it is not installed, cannot be loaded, or refuses its settings.
        """
        self._place = f"access.authenticators.{name}"
        self._logged_at = float("-inf")
        self._identify = make_authenticator(name, settings).identify

    def identify(self, request: Request) -> Identity | None:
        try:
            identity = self._identify(request)
            if identity is None or _is_valid(identity):
                return identity
            problem = "it returned no valid Identity"
        except Exception as error:  # third-party code may raise anything
            problem = in_words(error)
        if time.monotonic() - self._logged_at > LOG_INTERVAL:
            self._logged_at = time.monotonic()
            log.error("%s has failed and lets nobody in: %s", self._place, problem)
        return None


def _is_valid(identity: Any) -> TypeGuard[Identity]:
    """Return whether an identity can be shown and stored: its names are short and printable."""
    if not isinstance(identity, Identity) or not isinstance(identity.scopes, frozenset):
        return False
    names = (identity.tenant, identity.member, identity.key_id, identity.session, identity.address)
    short = all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
    return short and bool(identity.name) and "".join(names).isprintable()


class Authenticators:
    """The configured chain, and the way to sign in by the shared password."""

    def __init__(self, config: Config, store: Store) -> None:
        """
        Raises:
            ConfigError: a third party's authenticator cannot be made.
        """
        access = config.access
        self.sessions: Sessions | None = None
        """None: there is no shared password."""
        self._chain: list[Authenticator] = [AnyAddress()]
        if access.mode == "password":
            others = [ThirdParty(name, table) for name, table in access.authenticators.items()]
            self._chain = [ApiKeys(access.keys), *others]
            if access.password_hash:
                self._password = SharedPassword(access.password_hash, store)
                self.sessions = Sessions(store, access, config.read_node_secret())
                self._chain.append(self.sessions)

    def identify(self, request: Request) -> Identity | None:
        """Return the identity by the first authenticator that knows the visitor."""
        for authenticator in self._chain:
            if identity := authenticator.identify(request):
                return identity
        return None

    def sign_in(self, password: str, client: str) -> str:
        """Return the cookie of a new session; empty for a wrong password. Slow.

        Raises:
            Throttled: too many wrong passwords.
            Busy: too many passwords are being checked.
            StoreUnavailable: Redis cannot be reached.
        """
        if self.sessions and self._password.check(password, client):
            return self.sessions.begin()
        return ""
