"""Write back who uses the GPU, at most once a second however many requests there are.

While anything counts as in flight, the process holds one `inflight:` lease, renewed every
`RENEW` seconds; when a request begins or ends, its client's lease is extended by one idle timeout.
A thread renews the lease too, because a blocked event loop says nothing about the work of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from qwenctl.config.gpu import GpuConfig
from qwenctl.core import leases
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Touch
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from .link import Link, Silence

log = logging.getLogger("qwenctl.proxy")

WRITE_BACK = 1.0
"""Longest time from an activity to its lease, in seconds: W of
docs/architecture.md#why-no-request-is-forwarded-into-a-stop."""

RENEW = 1.5
"""How often the in-flight lease is renewed, in seconds: within every drain (3 s or more), so that a
lease that the store has lost (a truncated append-only file, a failover) is back before a stop."""

INFLIGHT_TTL = 30.0
"""How long the in-flight lease outlives this process, in seconds."""

BLOCKED = 900.0
"""How long the event loop may be blocked until its requests no longer count, in seconds."""

UNSEEN = 30.0
"""How long a request of running work that another data plane forwards counts as in flight, in
seconds: until the node has reported that work itself."""


QUIET = 30.0
"""How long work that shows in messages counts as in flight after the last of them, in seconds."""


@dataclass
class _Gpu:
    config: GpuConfig
    flights: set[InFlight] = field(default_factory=set)
    """The requests in flight."""
    silence: Silence = field(default_factory=Silence)
    touched: dict[str, float] = field(default_factory=dict)
    """Lease → when the youngest request of that client began (monotonic)."""
    written_at: float = float("-inf")
    leased: bool = False
    phase: Phase | None = None
    """The GPU's phase as of the last write-back; None if that failed."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Serialises write-backs: an earlier one must not undo a later one."""
    renewing: threading.Lock = field(default_factory=threading.Lock)
    """Held while the store is written to: the thread must not bring back a lease given up."""

    @property
    def due(self) -> float:
        """Return when the next write-back is due (monotonic), or infinity."""
        if self.touched or self.leased != bool(self.flights):
            return self.written_at + WRITE_BACK * 0.9
        return self.written_at + RENEW if self.flights else float("inf")


class InFlight:
    """A request that counts as use from its first byte to its last."""

    def __init__(self, usage: UsageTracker, gpu: str, lease: str) -> None:
        self._usage, self._gpu, self._lease = usage, gpu, lease
        self._began = time.monotonic()
        self.link: Link | None = None
        """Its connection to the node, if this process forwards it."""

    @property
    def moved_at(self) -> float:
        """When it began, or had a byte of the node (monotonic)."""
        return max(self._began, self.link.moved_at if self.link else 0.0)

    def touch(self) -> None:
        """Record activity now, whenever the request began."""
        self._usage.touch(self._gpu, self._lease)

    def __enter__(self) -> InFlight:
        self._usage._enter(self._gpu, self._lease, self._began, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._usage._leave(self._gpu, self._lease, self._began, self)


@dataclass
class _Flow:
    """Work whose answer comes in messages."""

    use: InFlight
    moved_at: float = 0.0


class UsageTracker:
    """Collect the use that this process writes back. Used on the event loop only."""

    def __init__(self, store: Store, gpus: Mapping[str, GpuConfig], owner: str) -> None:
        self._store = store
        self._owner = owner
        self.inflight_lease = leases.inflight(owner)
        self._gpus = {name: _Gpu(config) for name, config in gpus.items()}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="activity")
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._dirty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        threading.Thread(target=self._renew_when_blocked, name="in-flight", daemon=True).start()

    async def stop(self) -> None:
        """Write back the last use and release the in-flight leases."""
        self._stopped.set()
        if self._task:
            self._task.cancel()
        for name, gpu in self._gpus.items():
            gpu.flights.clear()
            if gpu.touched or gpu.leased:
                await self._write(name, gpu)
        self._threads.shutdown(wait=False)

    def in_flight(self, gpu: str) -> int:
        """Return how many requests that count are in flight."""
        known = self._gpus.get(gpu)
        return len(known.flights) if known else 0

    def silence(self, gpu: str) -> Silence:
        """Return for how long the node has answered nothing that this process asked."""
        return self._gpus[gpu].silence

    def use(self, gpu: str, lease: str) -> InFlight:
        """Return a context manager that counts a request of that client as in flight."""
        return InFlight(self, gpu, lease)

    def flows(self, gpu: str, lease: str) -> None:
        """Count work whose answer comes in messages as in flight, until none has come for `QUIET`.

        As a request in flight it is not cut by a `down` or a block, and extends nothing after one.
        """
        flow = self._flows.get((gpu, lease))
        if flow is None:
            flow = self._flows[gpu, lease] = _Flow(self.use(gpu, lease))
            asyncio.get_running_loop().call_later(QUIET, self._end_flow, gpu, lease)
            flow.use.__enter__()
        flow.moved_at = time.monotonic()

    def _end_flow(self, gpu: str, lease: str) -> None:
        flow = self._flows[gpu, lease]
        left = flow.moved_at + QUIET - time.monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._end_flow, gpu, lease)
        else:
            del self._flows[gpu, lease]
            flow.use.__exit__()

    def touch(self, gpu: str, lease: str, began: float | None = None) -> None:
        """Extend a client's lease by one idle timeout from now."""
        touched = self._gpus[gpu].touched
        if not touched:  # else a write-back is due anyway
            self._dirty.set()
        # Two requests of one client in one second: the younger one decides.
        touched[lease] = max(began or time.monotonic(), touched.get(lease, 0.0))

    def _enter(self, gpu: str, lease: str, began: float, flight: InFlight) -> None:
        self._gpus[gpu].flights.add(flight)
        self.touch(gpu, lease, began)

    def _leave(self, gpu: str, lease: str, began: float, flight: InFlight) -> None:
        self._gpus[gpu].flights.discard(flight)
        self.touch(gpu, lease, began)

    async def recorded(self, gpu: str) -> Phase | None:
        """Return once the store has recorded the requests in flight now, with its phase then.

        Return None if the store cannot be reached.
        """
        began, state = time.monotonic(), self._gpus[gpu]
        async with state.writing:
            if state.written_at < began:
                await self._write_now(gpu, state)
            return state.phase

    async def recorded_before_stop(self, gpu: str) -> bool:
        """Return whether the store has recorded the requests in flight before a stop began.

        True without the store, because nothing can be stopped without it.
        """
        return await self.recorded(gpu) in (Phase.READY, Phase.DRAINING, None)

    async def begin_unseen(self, gpu: str, lease: str) -> bool:
        """Count a request of running work that another data plane forwards, for `UNSEEN` seconds.

        Return False, without counting it, if the stop has begun.
        """
        with contextlib.ExitStack() as use:
            use.enter_context(self.use(gpu, lease))
            if not await self.recorded_before_stop(gpu):
                return False
            asyncio.get_running_loop().call_later(UNSEEN, use.pop_all().close)
        return True

    async def _run(self) -> None:
        while True:
            self._dirty.clear()
            now = time.monotonic()
            due = min(gpu.due for gpu in self._gpus.values())
            if due > now:
                try:
                    await asyncio.wait_for(
                        self._dirty.wait(), None if due == float("inf") else due - now
                    )
                except asyncio.TimeoutError:
                    pass
                continue
            await asyncio.gather(
                *(self._write(name, gpu) for name, gpu in self._gpus.items() if gpu.due <= now)
            )

    def _renew_when_blocked(self) -> None:
        """Renew the in-flight leases that the event loop does not renew in time."""
        while not self._stopped.wait(RENEW):
            for name, gpu in self._gpus.items():
                late = time.monotonic() - gpu.written_at
                if gpu.flights and 2 * RENEW < late < BLOCKED:
                    try:
                        with gpu.renewing:
                            if gpu.flights:
                                late = time.monotonic() - gpu.written_at
                                self._touch(name, gpu, INFLIGHT_TTL, [], late)
                    except (
                        Exception
                    ) as error:  # whatever the cause: the next time it is tried again
                        log.warning("%s: cannot renew the in-flight lease: %s", name, error)

    async def _write(self, name: str, gpu: _Gpu) -> None:
        async with gpu.writing:
            await self._write_now(name, gpu)

    async def _write_now(self, name: str, gpu: _Gpu) -> None:
        before, gpu.written_at = gpu.written_at, time.monotonic()
        late = gpu.written_at - before
        unread = late if late > 2 * RENEW else 0.0  # the loop was blocked, or had nothing to write
        touched, gpu.touched = gpu.touched, {}
        in_flight = bool(gpu.flights)

        def write() -> Phase:
            # Ages are computed at the last moment: too small an age would make a request look
            # younger than a later `down`.
            with gpu.renewing:
                now, idle = time.monotonic(), gpu.config.idle_timeout
                touches = [Touch(lease, idle, now - began) for lease, began in touched.items()]
                ttl = INFLIGHT_TTL if in_flight else 0.0
                return self._touch(name, gpu, ttl, touches, unread)

        try:
            gpu.phase = await asyncio.get_running_loop().run_in_executor(self._threads, write)
            gpu.leased = in_flight
        except Exception as error:  # whatever the cause: unrecorded use would be cut off
            level = logging.DEBUG if isinstance(error, StoreUnavailable) else logging.WARNING
            log.log(level, "%s: activity is kept for later: %s", name, error)
            gpu.phase = None
            gpu.touched = {**touched, **gpu.touched}

    def _touch(
        self,
        name: str,
        gpu: _Gpu,
        inflight_ttl: float,
        touches: list[Touch],
        unread: float,
    ) -> Phase:
        """Write to the store; for ``unread`` seconds nobody has read what the node has answered."""
        now = time.monotonic()
        moved_at = max((flight.moved_at for flight in tuple(gpu.flights)), default=now)
        return self._store.touch(
            name,
            self.inflight_lease,
            inflight_ttl,
            touches,
            actor=self._owner,
            moved_ago=now - moved_at,
            unanswered=max(0.0, gpu.silence.seconds - unread),
        )
