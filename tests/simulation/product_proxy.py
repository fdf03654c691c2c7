"""A proxy process of the simulation whose data plane is the product's own.

`DataPlane`, `Admit`, `HeldRequests`, `WaitingPages`, `SnapshotCache` and `UsageTracker` run under
virtual time. Simulated are the server around them, the threads and the connection to the node. News of
the store arrive when the test says so, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from proxy.data import plane
from proxy.data.admit import Admit
from proxy.data.exchange import Exchange
from proxy.data.forward import NotConnected, UpstreamDied
from proxy.data.plane import DataPlane
from proxy.data.services import Services
from proxy.data.snapshot_cache import SnapshotCache
from proxy.data.usage import RENEW, UsageTracker
from proxy.data.waiting import WaitingPages
from proxy.http.metrics import Metrics
from proxy.http.problem import Problem
from proxy.http.request import Message, Request
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.identity import Identity
from qwenctl.store.store import Store
from tests.simulation.puppets import GPU
from tests.simulation.virtual_loop import VirtualLoop
from tests.support.virtual_time import VirtualClock

__all__ = ["Flight", "ProductProxy"]

_HEADERS = [
    (b"host", b"gpu.test"),
    (b"sec-fetch-mode", b"cors"),
    (b"sec-fetch-site", b"same-origin"),
    (b"origin", b"http://gpu.test"),
]


@dataclass(eq=False)
class Flight:
    """One request that the node works on."""

    client: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    died: bool = False


class _AtOnce:
    """In place of a thread pool."""

    def submit(self, work: Callable[[], object]) -> None:
        work()

    def shutdown(self, *, wait: bool) -> None:
        pass


class _Once:
    """In place of the event that ends a thread: it makes one round."""

    def __init__(self) -> None:
        self._waits = 0

    def wait(self, _: float) -> bool:
        self._waits += 1
        return self._waits > 1

    def set(self) -> None:
        pass


class _Everybody:
    """Identifies visitors by their address."""

    def identify(self, request: Request) -> Identity:
        return Identity(address=request.client)


class _Pages:
    async def waiting(self, *_: object) -> None: ...
    async def sign_in(self, *_: object) -> None: ...
    async def problem(self, *_: object) -> None: ...


class ProductProxy:
    """One process: its event loop, and the clients that have connections to it."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: VirtualClock,
        gpu: GpuConfig,
        serves: Callable[[], bool],
        lag: float = 0.0,
    ) -> None:
        """
        Args:
            serves: whether the node accepts connections.
            lag: seconds by which the loop is late.
        """
        self._timed = _timed_modules()
        for module in self._timed:
            module.time = SimpleNamespace(monotonic=clock)  # type: ignore[attr-defined]
        # Its default time is that of the machine.
        plane.Exchange = lambda *parts: Exchange(*parts, began=clock())  # type: ignore[assignment,misc]
        self.name, self.clock, self.lag = name, clock, lag
        self._serves = serves
        self._loop = VirtualLoop(clock)
        config = Config(deployment="simulated", gpu={GPU: gpu})
        metrics = Metrics()
        self._snapshots = SnapshotCache(store, [GPU])
        self._usage = UsageTracker(store, {GPU: gpu}, name)
        self._usage._stopped = _Once()  # type: ignore[assignment]
        admission = Admit(store, self._snapshots, self._usage, metrics)
        services = Services(
            config=config,
            store=store,
            owner=name,
            trusted=(),
            snapshots=self._snapshots,
            usage=self._usage,
            authenticators=_Everybody(),  # type: ignore[arg-type]
            metrics=metrics,
            admit=admission,
        )
        self._plane = DataPlane(services, _Forwarder(self._forward), _Pages())  # type: ignore[arg-type]
        self._plane._threads = _AtOnce()  # type: ignore[assignment]
        self._pages = WaitingPages(config, store)
        self.flights: list[Flight] = []
        self._waiting: dict[asyncio.Task[None], asyncio.Event] = {}
        """Each request's task → set when its client goes away."""
        self.stalled_until = float("-inf")
        self._renew_at = float("inf")
        self._tasks = [
            self._loop.create_task(self._usage._run()),
            self._loop.create_task(self._snapshots._keep_fresh()),
        ]
        self.run_due()

    # The process

    @property
    def due(self) -> float:
        """When it has something to do, as late as it may be."""
        if self.stalled_until > self.clock():
            return min(self.stalled_until, self._renew_at)
        due = self._loop.due
        return due if due <= self.clock() else due + self.lag

    def run_due(self) -> None:
        """Do what is due, on the loop, or while that is blocked in the thread beside it."""
        if self.stalled_until <= self.clock():
            self._loop.run_due()
        elif self._renew_at <= self.clock():
            self._renew_at = self.clock() + RENEW
            self._usage._stopped = _Once()  # type: ignore[assignment]
            self._usage._renew_when_blocked()

    def stall(self, seconds: float) -> None:
        """Block the event loop."""
        self.stalled_until = self.clock() + seconds
        self._renew_at = self.clock() + RENEW

    def news(self) -> None:
        """A published change arrives."""
        if self.stalled_until <= self.clock():
            self._loop.call_soon(self._snapshots._invalidate, GPU)
            self.run_due()

    def close(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.stalled_until = float("-inf")
        with contextlib.suppress(Exception):
            self._loop.run_due()
        self._loop.close()
        for module in self._timed:
            module.time = time  # type: ignore[attr-defined]
        plane.Exchange = Exchange  # type: ignore[misc]

    # Its clients

    @property
    def held(self) -> int:
        """How many requests wait, not forwarded yet."""
        return len(self._waiting) - len(self.flights)

    def visit(self, client: str) -> None:
        """The waiting page's wake."""
        with contextlib.suppress(Problem):  # blocked
            self._pages.wake(GPU, Request.of(_scope(client), ()), Identity(address=client))

    def request(self, client: str) -> None:
        """A waking request arrives; it is forwarded, or held, or refused."""
        gone = asyncio.Event()
        task = self._loop.create_task(self._serve(client, gone))
        self._waiting[task] = gone
        task.add_done_callback(lambda _: self._waiting.pop(task, None))
        self.run_due()

    def give_up(self) -> None:
        """All clients whose requests wait go away."""
        in_flight = {flight.client for flight in self.flights}
        for task, gone in list(self._waiting.items()):
            if task.get_name() not in in_flight:
                gone.set()
        self.run_due()

    def end(self, flight: Flight) -> None:
        """The node has answered."""
        flight.over.set()
        if flight in self.flights:
            self.flights.remove(flight)
        self.run_due()

    def cut(self) -> None:
        """The node is gone, and with it whatever was in flight."""
        for flight in self.flights:
            flight.died = True
            flight.over.set()
        self.flights.clear()

    async def _serve(self, client: str, gone: asyncio.Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        first = True

        async def receive() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            pass

        await self._plane(_scope(client), receive, send)

    async def _forward(self, *_: object) -> int:
        """`proxy.data.forward.Forwarder`, to a node that answers when the test says so."""
        if not self._serves():
            raise NotConnected("refused")
        task = asyncio.current_task()
        assert task is not None
        flight = Flight(task.get_name())
        self.flights.append(flight)
        try:
            await flight.over.wait()
        finally:
            if flight in self.flights:
                self.flights.remove(flight)
        if flight.died:
            raise UpstreamDied("the node is gone", started=True)
        return 200


class _Forwarder:
    """Forwards like that; a probe of the node gets no answer."""

    def __init__(self, forward: Callable[..., Awaitable[int]]) -> None:
        self._forward = forward

    def __call__(self, *arguments: object) -> Awaitable[int]:
        return self._forward(*arguments)

    async def answers(self, *_: object) -> bool:
        return False


def _timed_modules() -> list[ModuleType]:
    """Return the modules of the data plane that read the monotonic clock."""
    modules = (module for name, module in sys.modules.items() if name.startswith("proxy.data."))
    return [module for module in modules if "time" in vars(module)]


def _scope(client: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/gradio_api/queue/join",
        "raw_path": b"/gradio_api/queue/join",
        "query_string": b"",
        "headers": _HEADERS,
        "client": (client, 1),
        "server": ("gpu.test", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
