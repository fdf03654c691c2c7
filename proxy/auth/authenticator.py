"""How visitors are identified: the `Authenticator` Protocol, and the one for open access."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from ..http.request import Request
from .identity import Identity

__all__ = [
    "Authenticator",
    "NoAccessControl",
]


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


class NoAccessControl:
    """Everybody who reaches the proxy may use it."""

    def identify(self, request: Request) -> Identity | None:
        return _anonymous(request.client or "local")

    def sign_in(self, password: str, client: str) -> str | None:  # noqa: ARG002
        return None
