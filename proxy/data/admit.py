"""Admit requests: decide, lease the GPU where the decision needs that, decide again.

The one place where `admission.decide` meets the store. The forwarder (`plane`) and the forward-auth
endpoint (`front.forward_auth`) both ask here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from qwenctl.config.gpu import GpuConfig
from qwenctl.core import leases
from qwenctl.core.identity import Identity
from qwenctl.core.observer import Observer
from qwenctl.core.snapshot import Admission
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..http.request import Request
from .admission import Action, Decision, decide
from .snapshot_cache import FRESH, SnapshotCache, View
from .usage import INFLIGHT_TTL, UsageTracker


@dataclass(slots=True)
class Inbound:
    """A request, who sent it, the GPU it is for and that GPU's last known state."""

    request: Request
    identity: Identity | None
    name: str
    gpu: GpuConfig
    view: View
    began: float = field(default_factory=time.monotonic, kw_only=True)

    @property
    def reason(self) -> str:
        """The reason to record with this request's lease."""
        return f"{self.request.method} {self.request.target.partition('?')[0][:120]}"

    @property
    def lease(self) -> str:
        """The lease that this request's demand and use extend."""
        return self.identity.lease if self.identity else leases.request("unknown")


class Admit:
    """Decides about requests and turns their demand into leases. Used on the event loop only."""

    def __init__(
        self, store: Store, snapshots: SnapshotCache, usage: UsageTracker, observer: Observer
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._usage = usage
        self._observer = observer
        self._demands: dict[tuple[str, str, bool, bool], asyncio.Task[Admission]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="demand")

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def decide(self, inbound: Inbound) -> Decision:
        """Return the decision by a fresh snapshot, or by the last known one without the store."""
        inbound.view.used = True
        if inbound.view.age > FRESH:
            await self._snapshots.view(inbound.name)
        decision = decide(inbound.gpu, inbound.request, inbound.identity, inbound.view.snapshot)
        self._observer.admitted(inbound.name, decision.action.value)
        return decision

    async def decide_at_once(self, inbound: Inbound) -> Decision:
        """Decide for a data plane that can neither hold a request nor see its end.

        Demand a lease first where the decision needs it. A request of running work is counted as
        in flight, and is then to be forwarded.
        """
        decision = await self.decide(inbound)
        if decision.action is Action.LEASE:
            with contextlib.suppress(StoreUnavailable):  # then the last known state decides
                await self.demand(inbound, wake=decision.wakes, held=False)
                await self._snapshots.refresh(inbound.name)
            decision = await self.decide(inbound)
        if decision.action is Action.FINISH:
            if await self._usage.begin_unseen(inbound.name, inbound.lease):
                return replace(decision, action=Action.FORWARD)
            await self._snapshots.refresh(inbound.name)
        return decision

    @contextlib.asynccontextmanager
    async def finishing(self, inbound: Inbound) -> AsyncIterator[bool]:
        """Count a request of running work as in flight; yield False if the stop has begun.

        Without the store, by which alone the instance could be stopped, yield True.
        """
        with self._usage.use(inbound.name, inbound.lease):
            in_time = await self._usage.recorded_before_stop(inbound.name)
            if not in_time:
                await self._snapshots.refresh(inbound.name)
            yield in_time

    async def demand(self, inbound: Inbound, *, wake: bool, held: bool = True) -> Admission:
        """Turn a request into a lease; one call to the store for a client's simultaneous requests.

        ``held``: the request waits in this process. Its lease lasts for the start too, this
        process's in-flight lease is written with it, and a `down` after it began ends it.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        key = (inbound.name, inbound.lease, wake, held)
        running = self._demands.get(key)
        joined = running is not None
        if running is None:
            running = asyncio.ensure_future(self._demand(inbound, wake, held))
            self._demands[key] = running
            running.add_done_callback(lambda _: self._demands.pop(key, None))
        admission = await asyncio.shield(running)
        if joined and admission.released:
            # The first request began before a `down`; this request may have begun after it.
            admission = await self._demand(inbound, wake, held)
        return admission

    async def _demand(self, inbound: Inbound, wake: bool, held: bool) -> Admission:
        ttl = inbound.gpu.idle_timeout
        if held and not inbound.view.snapshot.phase.serves:
            ttl += inbound.gpu.boot_estimate
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._store.demand(
                inbound.name,
                inbound.lease,
                ttl,
                reason=inbound.reason,
                actor=inbound.identity.name if inbound.identity else "",
                inflight=self._usage.inflight_lease if held else "",
                inflight_ttl=INFLIGHT_TTL,
                may_wake=wake,
                began_ago=time.monotonic() - inbound.began if held else 0.0,
            ),
        )
