"""The JSON endpoints: status, wake, tiers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask.typing import ResponseReturnValue

from ..auth.identity import Identity
from ..data.admission import may_wake
from ..data.services import Services
from ..data.waiting import WaitingPages
from .pages import Pages
from .status_stream import StatusStream
from .views import Route, Views

__all__ = ["TIERS_AGE", "Api"]

TIERS_AGE = 2.0
"""How old the answer of ``/api/tiers`` may be, in seconds: every waiting page asks each 3 s."""


class Api(Views):
    """Views that answer with JSON."""

    def __init__(
        self, services: Services, stream: StatusStream, pages: Pages, waiting: WaitingPages
    ) -> None:
        super().__init__(services)
        self._stream, self._pages, self._waiting = stream, pages, waiting

    def routes(self) -> Iterable[Route]:
        return (
            ("GET", "/api/tiers", self.tiers),
            ("GET", "/api/status", self.status),
            ("POST", "/api/wake", self.wake),
        )

    def tiers(self) -> ResponseReturnValue:
        _ = self.identity
        return {"tiers": self._pages.tiers(self.request, TIERS_AGE)}

    def status(self) -> ResponseReturnValue:
        identity, gpu = self.identity, self.gpu
        if self.request.from_browser:  # a page that polls, because it is hidden or has no stream
            self._waiting.seen(gpu, self.request, identity)
        return self._status(gpu, identity)

    def wake(self) -> ResponseReturnValue:
        identity, gpu = self.identity, self.gpu
        self._waiting.wake(gpu, self.request, identity)
        return self._status(gpu, identity, fresh=True), 202

    def _status(self, gpu: str, identity: Identity, *, fresh: bool = False) -> dict[str, Any]:
        allowed = may_wake(self._config.gpu[gpu], identity, by_page=True)
        return self._stream.status(gpu, may_wake=allowed, fresh=fresh)
