"""Keep the demand of everybody who waits for a GPU: held requests and waiting pages."""

from __future__ import annotations

import time
from collections import deque

from qwenctl.config.deployment import Config
from qwenctl.core.failures import NEEDS_PERSON, THROTTLED
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..http.cookies import visit_slot
from ..http.metrics import Metrics
from ..http.problem import Problem
from ..http.request import GONE, Request
from .admission import Action, Decision, may_wake
from .admit import Admit
from .exchange import Exchange, blocked_detail
from .forward import ClientGone
from .progress import Progress
from .request_buffer import ReadAheadBudget, RequestBuffer
from .snapshot_cache import SnapshotCache

RENEW_HELD = 20.0
"""How often a held request renews its lease, in seconds, or a third of the idle timeout."""

RENEW_PAGE = 30.0
"""How often a waiting page's lease is renewed, in seconds, or a third of the idle timeout."""

UNWATCHED_ATTEMPTS = 3
"""After so many failed attempts in a row only a visible page keeps its lease."""

TAKE_BACKS = 10
"""How many waits of people who need not sign in are taken back in a minute; others run out."""

TRY_PAUSE = 10.0
"""How soon after a failure a visitor's "try now" is obeyed, in seconds."""

PAGE = "waiting page"
"""The reason recorded with a waiting page's lease."""


class HeldRequests:
    """Holds requests until the GPU is ready. Used on the event loop only."""

    def __init__(
        self,
        config: Config,
        admit: Admit,
        snapshots: SnapshotCache,
        metrics: Metrics,
        budget: ReadAheadBudget,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self._admit = admit
        self._snapshots = snapshots
        self._metrics = metrics
        self._budget = budget
        self._progress = progress
        self._held = 0
        self._closing = False

    def close(self) -> None:
        """Answer all held requests, because the proxy goes down."""
        self._closing = True
        for name in self._config.gpu:
            self._snapshots.peek(name).tell()

    async def hold(self, exchange: Exchange, decision: Decision) -> bool:
        """Lease the GPU and wait; return False if the request is to be decided again.

        Return True if it has been answered, because waiting longer is useless.

        Raises:
            ClientGone: nobody waits any more.
            StoreUnavailable: the first demand did not reach the store.
        """
        if self._held >= self._config.proxy.max_held:
            await exchange.unready("too many requests are waiting")
            return True
        if not isinstance(exchange.receive, RequestBuffer):
            exchange.receive = RequestBuffer(exchange.request, exchange.receive, self._budget)
        self._held += 1
        self._metrics.held.labels(exchange.name).inc()
        try:
            return await self._wait(exchange, decision, exchange.receive)
        finally:
            await exchange.receive.stop()
            self._held -= 1
            self._metrics.held.labels(exchange.name).dec()

    async def _wait(self, exchange: Exchange, decision: Decision, receive: RequestBuffer) -> bool:
        view = exchange.view
        deadline = exchange.began + self._config.proxy.hold
        every = min(RENEW_HELD, exchange.gpu.idle_timeout / 3)
        asked_at = float("-inf")
        gone = exchange.scope.get(GONE)
        while True:
            if gone and gone():
                raise ClientGone
            now = time.monotonic()
            if now - asked_at > every:
                first, asked_at = asked_at < 0, now
                if await self._renew(exchange, decision, first=first):
                    return True
            snapshot = view.snapshot
            if snapshot.phase.serves:
                return False
            leaves = snapshot.phase is not Phase.DRAINING or snapshot.interrupted_at is not None
            if decision.action is Action.LEASE and leaves:
                return False  # too late for the lease: the request's kind decides
            if why := self._useless(exchange, now >= deadline):
                await exchange.unready(why)
                return True
            view.used = True
            again = await self._progress.tell(exchange, receive) if self._progress else every
            await receive.wait(view, max(0.0, min(deadline - now, every, again)))

    def _useless(self, exchange: Exchange, late: bool) -> str:
        """Return why a request should wait no longer, or an empty text."""
        snapshot = exchange.view.snapshot
        failure = snapshot.failure
        if snapshot.phase is Phase.FAILED and failure:
            later = exchange.gpu.hold_on_failure == "fail" and failure.retry_at > snapshot.now
            if later or failure.code in NEEDS_PERSON:
                return failure.headline
        if self._closing:
            return "the proxy is restarting"
        return f"not ready after {self._config.proxy.hold:.0f} s" if late else ""

    async def _renew(self, exchange: Exchange, decision: Decision, *, first: bool) -> bool:
        """Demand the lease again; return True if that ends the request (blocked, given up)."""
        try:
            admission = await self._admit.demand(exchange, wake=decision.wakes)
        except StoreUnavailable:
            if first:
                raise
            return False  # perhaps a failover: the earlier demand still stands
        if admission.blocked_by or admission.released:
            await self._snapshots.refresh(exchange.name)
            if admission.blocked_by:
                await exchange.blocked()
            else:
                await exchange.unready("somebody has run `qwenctl down` meanwhile")
            return True
        if admission.phase is not exchange.view.snapshot.phase:
            await self._snapshots.refresh(exchange.name)
        return False


class WaitingPages:
    """Owns the leases of waiting pages: open, hidden, polling or without script.

    A page's lease lasts for the idle timeout and the usual boot from when the page was last seen.
    Called in threads.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._taken_back: deque[float] = deque(maxlen=TAKE_BACKS)

    def wake(
        self, gpu: str, request: Request, identity: Identity, *, try_now: bool = False
    ) -> None:
        """Turn the visit of a page, or a wake request, into a lease.

        ``try_now``: a failed GPU is tried again at once, except where its cloud asks for a pause.

        Raises:
            Problem: this visitor may not wake it, or it is blocked.
            StoreUnavailable: Redis cannot be reached.
        """
        if identity.needs_same_origin and not request.same_origin:
            raise Problem(403, "cross_site", "another site must not wake the GPU")
        if not may_wake(self._config.gpu[gpu], identity, by_page=True):
            raise Problem(
                403,
                "may_not_wake",
                "this GPU is woken by API keys, schedules and `qwenctl up` only"
                if identity.may_wake
                else "this visitor may not wake it",
            )
        blocked_by = self._demand(
            gpu, request, identity, PAGE if request.from_browser else "wake request"
        )
        if blocked_by:
            snapshot = self._store.snapshot(gpu)
            named = not request.from_browser
            raise Problem(423, "blocked", blocked_detail(gpu, snapshot, blocked_by, named=named))
        if try_now:
            failure = self._store.snapshot(gpu).failure
            if failure and failure.code != THROTTLED:
                self._store.try_now(gpu, TRY_PAUSE)

    def may_give_up(self, identity: Identity) -> bool:
        """Return whether a visitor's page has a lease that is the visitor's alone."""
        return identity.shares_address or identity.is_one_person

    def give_up(self, gpu: str, request: Request, identity: Identity) -> None:
        """End the wait of a visitor who does not need the GPU any more.

        Raises:
            Problem: another site asks, or others have the same lease.
            StoreUnavailable: Redis cannot be reached.
        """
        if not request.same_origin:
            raise Problem(403, "cross_site", "another site must not end a wait")
        if not self._may_take_back(request, identity):
            detail = "this wait may be that of others, too; it runs out by itself"
            raise Problem(409, "shared_wait", detail)
        if not self._store.snapshot(gpu).phase.serves:
            mine = self._lease(request, identity)
            self._store.release(gpu, only=mine, actor=identity.name, reason="given up")

    def seen(
        self, gpu: str, request: Request, identity: Identity, *, watched: bool = False
    ) -> None:
        """Renew the lease of a visitor who still has the waiting page open.

        A page that has no lease any more (it ran out, or `qwenctl down` ended it) gets none here:
        looking at a page's address wakes nothing. ``watched``: it is visible. Others wait for a few
        attempts only: a forgotten tab must not start a GPU all night that cannot run.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        settings = self._config.gpu[gpu]
        if not request.same_origin or not may_wake(settings, identity, by_page=True):
            return
        began = time.monotonic()
        snapshot, name = self._store.snapshot(gpu), self._lease(request, identity)
        if not watched and snapshot.failure and snapshot.failure.attempts >= UNWATCHED_ATTEMPTS:
            return
        every = min(RENEW_PAGE, settings.idle_timeout / 3)
        due = snapshot.now + self._lifetime(gpu) - every
        if _on_its_way(snapshot) and any(
            lease.name == name and lease.expiry < due for lease in snapshot.leases
        ):
            # A `down` after the snapshot must not be undone.
            self._demand(gpu, request, identity, PAGE, began=began)

    def choose(self, chosen: str, request: Request, identity: Identity) -> None:
        """Let the other GPUs of the host sleep that only this visitor's page has asked for."""
        if self._may_take_back(request, identity):
            for gpu in self._config.gpus_at(request.hostname):
                if gpu != chosen:
                    self._take_back(gpu, request, identity)

    def _demand(
        self,
        gpu: str,
        request: Request,
        identity: Identity,
        reason: str,
        *,
        began: float | None = None,
    ) -> str:
        """Write the lease of a page; return the block that forbids it, or an empty text.

        ``began`` (monotonic): a `down` since then ends it.
        """
        return self._store.demand(
            gpu,
            self._lease(request, identity),
            self._lifetime(gpu),
            reason=reason,
            actor=identity.name,
            began_ago=0.0 if began is None else time.monotonic() - began,
        ).blocked_by

    def _lifetime(self, gpu: str) -> float:
        return self._config.gpu[gpu].idle_timeout + self._config.gpu[gpu].boot_estimate

    def _lease(self, request: Request, identity: Identity) -> str:
        """Return the lease of this visitor's page; ``#`` tells those of one address apart."""
        slot = visit_slot(request) if identity.shares_address else ""
        return f"{identity.lease}#{slot}" if slot else identity.lease

    def _may_take_back(self, request: Request, identity: Identity) -> bool:
        """Return whether the wait is this person's alone, as that of an address or key may not be.

        Waits of visitors who need not sign in are taken back seldom enough that they do not drive
        all else out of the history.
        """
        if not identity.shares_address:
            return identity.is_one_person
        now, taken = time.monotonic(), self._taken_back
        if not visit_slot(request) or (len(taken) == TAKE_BACKS and now - taken[0] < 60):
            return False
        taken.append(now)
        return True

    def _take_back(self, gpu: str, request: Request, identity: Identity) -> None:
        snapshot, mine = self._store.snapshot(gpu), self._lease(request, identity)
        if not snapshot.phase.serves and any(
            lease.name == mine and lease.reason == PAGE for lease in snapshot.leases
        ):
            self._store.release(gpu, only=mine, actor=identity.name, reason="another tier chosen")


def _on_its_way(snapshot: Snapshot) -> bool:
    """Return whether somebody can be waiting for this GPU: it comes up, or starts again."""
    comes = snapshot.phase.waking or snapshot.phase in (Phase.FAILED, Phase.STOPPING)
    return comes or snapshot.interrupted_at is not None
