"""Demand of waiting pages: wake a GPU for a page, and take that back."""

from __future__ import annotations

import time
from collections import deque

from qwenctl.config.deployment import Config
from qwenctl.store.store import Store

from ..auth.identity import Identity, visit_slot
from ..data.admission import may_wake
from ..http.problem import Problem
from ..http.request import Request

__all__ = ["PageDemand"]

TAKE_BACKS = 10
"""How many waits of people who need not sign in are taken back in a minute; others run out."""

REASON = "waiting page"


class PageDemand:
    """Leases that waiting pages hold. Called in threads."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._taken_back: deque[float] = deque(maxlen=TAKE_BACKS)

    def wake(self, gpu: str, request: Request, identity: Identity) -> None:
        """Turn the visit of a page, or a wake request, into a lease.

        Raises:
            Problem: this visitor may not wake it, or it is blocked.
            StoreUnavailable: Redis cannot be reached.
        """
        settings = self._config.gpu[gpu]
        if identity.kind != "key" and not request.same_origin:
            raise Problem(403, "cross_site", "another site must not wake the GPU")
        if not may_wake(settings, identity, by_page=True):
            raise Problem(
                403,
                "may_not_wake",
                "this GPU is woken by API keys, schedules and `qwenctl up` only",
            )
        admission = self._store.demand(
            gpu,
            self._lease(request, identity),
            settings.idle_timeout + settings.boot_estimate,
            reason=REASON if request.from_browser else "wake request",
            actor=identity.name,
        )
        if admission.blocked_by:
            raise Problem(423, "blocked", f"the GPU is blocked by {admission.blocked_by}")

    def choose(self, chosen: str, request: Request, identity: Identity) -> None:
        """Let the other GPUs of the host sleep that only this visitor's page has asked for."""
        if self._may_take_back(request, identity):
            for gpu in self._config.gpus_at(request.hostname):
                if gpu != chosen:
                    self._take_back(gpu, request, identity)

    def _lease(self, request: Request, identity: Identity) -> str:
        """Return the lease of this visitor's page: a personal one, where there is a choice of GPUs."""
        slot = visit_slot(request) if identity.kind == "anonymous" else ""
        chooses = slot and len(self._config.gpus_at(request.hostname)) > 1
        return f"{identity.lease}#{slot}" if chooses else identity.lease

    def _may_take_back(self, request: Request, identity: Identity) -> bool:
        """Return whether the wait is this person's alone, as that of an address or key may not be.

        Waits of visitors who need not sign in are taken back seldom enough that they do not drive
        all else out of the history.
        """
        if identity.kind != "anonymous":
            return identity.kind == "browser"
        now, taken = time.monotonic(), self._taken_back
        if not visit_slot(request) or (len(taken) == TAKE_BACKS and now - taken[0] < 60):
            return False
        taken.append(now)
        return True

    def _take_back(self, gpu: str, request: Request, identity: Identity) -> None:
        snapshot, mine = self._store.snapshot(gpu), self._lease(request, identity)
        if not snapshot.phase.serves and any(
            lease.name == mine and lease.reason == REASON for lease in snapshot.leases
        ):
            self._store.release(gpu, only=mine, actor=identity.name, reason="another tier chosen")
