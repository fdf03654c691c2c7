"""Hold requests until the GPU is ready, and renew their leases meanwhile."""

from __future__ import annotations

import time

from qwenctl.config.deployment import Config
from qwenctl.core.failures import NEEDS_PERSON
from qwenctl.core.lifecycle import Phase
from qwenctl.errors import StoreUnavailable

from ..http.metrics import Metrics
from .admission import Action, Decision
from .admit import Admit
from .exchange import Exchange
from .request_buffer import ReadAheadBudget, RequestBuffer
from .snapshot_cache import SnapshotCache

__all__ = ["HeldRequests"]

RENEW_HELD = 20.0
"""How often a held request renews its lease, in seconds, or a third of the idle timeout."""


class HeldRequests:
    """Holds requests until the GPU is ready. Used on the event loop only."""

    def __init__(
        self,
        config: Config,
        admit: Admit,
        snapshots: SnapshotCache,
        metrics: Metrics,
        budget: ReadAheadBudget,
    ) -> None:
        self._config = config
        self._admit = admit
        self._snapshots = snapshots
        self._metrics = metrics
        self._budget = budget
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
        while True:
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
            await receive.wait(view, max(0.0, min(deadline - now, every)))

    def _useless(self, exchange: Exchange, late: bool) -> str:
        """Return why a request should wait no longer, or an empty text."""
        snapshot = exchange.view.snapshot
        failure = snapshot.failure
        if snapshot.phase is Phase.FAILED and failure and failure.code in NEEDS_PERSON:
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
