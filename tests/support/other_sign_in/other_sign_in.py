"""A third party's authenticators for tests: a header of a trusted proxy, and broken ones.

Installed by putting this directory on the path.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.http.request import Request
from qwenctl.core.identity import USE, Identity


class TrustedHeader:
    """Believes the name that a trusted proxy in front has put into a header."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.header = settings["header"].lower()

    def identify(self, request: Request) -> Identity | None:
        name = request.headers.get(self.header)
        if not name or not request.trusted_peer:
            return None
        if name == "monitor":
            return Identity(member=name, scopes=frozenset())
        if name == "guest":
            return Identity(tenant="visitors", member=name, scopes=frozenset({USE}))
        return Identity(member=name)


class Raises:
    def __init__(self, settings: Mapping[str, str]) -> None:
        pass

    def identify(self, request: Request) -> Identity | None:
        raise LookupError("the directory\nis away")


class SaysYes:
    """Returns something that is no identity."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.answer = settings.get("answer", True)

    def identify(self, request: Request) -> object:
        return Identity(member=self.answer) if isinstance(self.answer, str) else self.answer


def no_method(settings: Mapping[str, str]) -> object:
    return object()
