"""A small world under virtual time around the real store and the real controllers.

Real: `Store` on a real Valkey, `Controller`, `lifecycle`, the proxy's gate. Simulated: the clock, the
cloud, the node's agent, and the proxies' timing (the rules of `proxy.data.snapshot_cache` and `proxy.data.usage`,
at their limits).

Each controller lives in a thread of its own and stops before every script, cloud call and check
until it is told to go on, so that one can be frozen, killed, or made to fail between any two
instructions while the others act. Only one thread runs at a time: a run is repeatable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis

from proxy.data.admission import Action, decide
from proxy.data.snapshot_cache import FRESH
from proxy.data.usage import INFLIGHT_TTL, RENEW, WRITE_BACK
from proxy.http.request import Request
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Lease, Snapshot, Touch
from qwenctl.protocol.messages import Hello, Interruption, Report
from qwenctl.store.store import Store
from tests.simulation.product_proxy import ProductProxy
from tests.simulation.puppets import GPU, Cloud, PointedController, Puppet
from tests.support.virtual_time import VirtualClock


@dataclass
class Flight:
    """One request that counts, forwarded to the node."""

    lease: str
    began: float


def wake_request() -> Request:
    """A browser's message, of the class that wakes and is held."""
    return Request(
        method="POST",
        path="/gradio_api/queue/join",
        target="/gradio_api/queue/join",
        headers={
            "host": "gpu.test",
            "sec-fetch-mode": "cors",
            "sec-fetch-site": "same-origin",
            "origin": "http://gpu.test",
        },
        raw_headers=[],
        peer="127.0.0.1",
        scheme="http",
        trusted_peer=False,
    )


@dataclass
class Proxy:
    """A proxy process at the limits of what its rules allow.

    Its snapshot is renewed only when it would be older than ``fresh``; its news are written as late
    as the test says, but not later than `due`.
    """

    name: str
    store: Store
    clock: VirtualClock
    gpu: GpuConfig
    story: Callable[[str], None] = lambda _: None
    fresh: float = FRESH
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(GPU, 0.0, {}))
    fetched_at: float = float("-inf")
    flights: list[Flight] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    """Clients whose requests wait → when their demand was renewed last."""
    touched: dict[str, float] = field(default_factory=dict)
    dirty_since: float | None = None
    written_at: float = float("-inf")
    leased: bool = False

    def refresh(self) -> Snapshot:
        self.fetched_at = self.clock()
        self.snapshot = self.store.snapshot(GPU)
        return self.snapshot

    def view(self) -> Snapshot:
        """`proxy.data.snapshot_cache.SnapshotCache.view`: what is known, asking first if that is not fresh."""
        return self.snapshot if self.clock() - self.fetched_at <= self.fresh else self.refresh()

    @property
    def due(self) -> float:
        """When something has to be written at the latest."""
        if self.dirty_since is not None:
            return self.dirty_since + WRITE_BACK
        return self.written_at + RENEW if self.flights else float("inf")

    def visit(self, client: str) -> None:
        """The waiting page's wake: demand without a request in flight."""
        self.story("wake")
        self.store.demand(
            GPU,
            f"request:{client}",
            self.gpu.idle_timeout,
            reason="visit",
            actor=client,
            inflight=f"inflight:{self.name}",
        )
        self.refresh()

    def request(self, client: str) -> Action:
        """A waking request arrives: `proxy.data.plane.DataPlane` up to forwarding or holding it."""
        who = Identity(address=client)
        for _ in range(4):
            decision = decide(self.gpu, wake_request(), who, self.view())
            if decision.action is Action.FORWARD:
                self.story("forward")
                self._enter(client)
                return decision.action
            if decision.action not in (Action.LEASE, Action.HOLD):
                return decision.action
            self._demand(client)
            if decision.action is Action.HOLD and not self.snapshot.phase.serves:
                break
        if not self.snapshot.blocks:
            self.held[client] = self.clock()
            self.story("hold")
        return Action.HOLD

    def _demand(self, client: str) -> None:
        admission = self.store.demand(
            GPU,
            f"request:{client}",
            self.gpu.idle_timeout + (0.0 if self.snapshot.phase.serves else self.gpu.boot_estimate),
            reason="request",
            actor=client,
            inflight=f"inflight:{self.name}",
            inflight_ttl=INFLIGHT_TTL,
        )
        self.leased = self.leased or admission.phase.serves
        self.refresh()

    def release_held(self) -> None:
        """Let held requests go on where the GPU is ready, and renew the demand of the others."""
        for client, asked_at in list(self.held.items()):
            if self.refresh().phase.serves:  # who waits is told of changes
                self.story("release")
                del self.held[client]
                self._enter(client)
            elif self.clock() - asked_at > min(20.0, self.gpu.idle_timeout / 3):
                self.held[client] = self.clock()
                self._demand(client)

    def _enter(self, client: str) -> None:
        flight = Flight(f"request:{client}", self.clock())
        self.flights.append(flight)
        self._touch(flight)

    def end(self, flight: Flight) -> None:
        if flight in self.flights:
            self.flights.remove(flight)
            self._touch(flight)

    def _touch(self, flight: Flight) -> None:
        self.touched[flight.lease] = max(flight.began, self.touched.get(flight.lease, 0.0))
        if self.dirty_since is None:
            self.dirty_since = self.clock()

    def cut(self) -> None:
        """The node is gone, and with it whatever was in flight."""
        for flight in list(self.flights):
            self.end(flight)

    def write(self) -> None:
        """`proxy.data.usage.UsageTracker._write`."""
        touched, self.touched, self.dirty_since = self.touched, {}, None
        self.written_at = self.clock()
        self.leased = bool(self.flights)
        self.store.touch(
            GPU,
            f"inflight:{self.name}",
            INFLIGHT_TTL if self.flights else 0.0,
            [
                Touch(lease, self.gpu.idle_timeout, self.clock() - began)
                for lease, began in touched.items()
            ],
            actor=self.name,
        )


@dataclass
class Node:
    """The agent on the instance."""

    store: Store
    clock: VirtualClock
    cloud: Cloud
    load: float = 0.0
    """Seconds from hello to ready."""
    mood: str = "well"
    """``well``, ``mute`` (never calls), ``broken`` (the service cannot run), ``stuck`` (loads for
    ever)."""
    active: int = 0
    interrupted: bool = False
    """The cloud has announced that it takes this boot's instance back."""
    works_until: float = float("-inf")
    """How long it works on something of its own, which no proxy knows of."""
    said_busy_at: float = float("-inf")
    said_hello_at: float | None = None
    reported_at: float = float("-inf")
    _boot: int = -1
    _seq: int = 0
    _messages: int = 0

    @property
    def serves(self) -> bool:
        """Whether its service answers."""
        if self.cloud.state is not Observed.RUNNING or self._boot != self.cloud.boots:
            return False
        said = self.said_hello_at
        return self.mood != "broken" and said is not None and self.clock() - said >= self.load

    @property
    def works(self) -> bool:
        """Whether it works on something of its own."""
        return self.serves and self.works_until > self.clock()

    def speak(self) -> None:
        """Say hello or report, whichever is due now."""
        if self.cloud.state is not Observed.RUNNING:
            return
        if self._boot != self.cloud.boots:
            self._boot, self.said_hello_at, self.interrupted = self.cloud.boots, None, False
            self.works_until = float("-inf")
        if self.mood == "mute":
            return
        self._messages += 1
        nonce, boot = (
            f"nonce-{self.cloud.name}-{self._messages:012d}",
            f"{self.cloud.name}-{self._boot:08d}",
        )
        if self.said_hello_at is None:
            verdict, seq = self.store.hello(Hello(gpu=GPU, boot_id=boot), nonce)
            if verdict == "ok":
                self._seq, self.said_hello_at = seq, self.clock()
            return
        ready = self.mood == "well" and self.clock() - self.said_hello_at >= self.load
        state = "failed" if self.mood == "broken" else "ready" if ready else "loading"
        report = Report(
            gpu=GPU,
            boot_id=boot,
            start_seq=self._seq,
            state=state,
            error="the service crashes" if state == "failed" else "",
            active=self.active + self.works,
            interruption=Interruption(seconds_left=120.0) if self.interrupted else None,
        )
        verdict, _, _ = self.store.report(report, nonce, heartbeat=5.0)
        self.reported_at = self.clock()
        if ready:
            self.said_busy_at = self.clock() if self.works else float("-inf")
        if verdict == "other_boot":
            self.said_hello_at = None


class World:
    """Everything together, and what may never happen in it."""

    def __init__(
        self,
        client: redis.Redis,
        deployment: str,
        clock: VirtualClock,
        gpu: GpuConfig,
        *,
        proxies: int = 2,
        controllers: int = 2,
        boot: float = 0.0,
        halt: float = 0.0,
        load: float = 0.0,
        fresh: float = FRESH,
        kind: type[PointedController] = PointedController,
        adjust: Callable[[Controller], None] = lambda _: None,
        product: bool = False,
        cloud: Cloud | None = None,
    ) -> None:
        """``product``: the proxies are `product_proxies`, with the product's own data plane."""
        self.clock, self.gpu = clock, gpu
        self.cloud = cloud or Cloud(clock, boot=boot, halt=halt)
        self.cloud.on_stop = self._stopping
        self.cloud.on_down = self._down
        self.store = Store(client, deployment, now=clock)
        self.story: list[str] = []
        """What happened, in the words of the model."""
        self.cuts: list[str] = []
        """Requests in flight that a stop call has hit, which must not happen."""
        self.incarnations: Counter[int] = Counter()

        def make(index: int, name: str) -> Puppet:
            tell = self._teller(index)
            return Puppet(name, client, deployment, clock, self.cloud, gpu, tell, kind, adjust)

        self._make = make
        self.puppets = [self._make(number, f"c{number}") for number in range(controllers)]
        self.node = Node(self.store, clock, self.cloud, load)
        self.proxies: list[Proxy] = []
        self.product_proxies: list[ProductProxy] = []
        for n in range(proxies):
            if product:
                serves, lag = lambda: self.node.serves, 0.09 * n
                self.product_proxies.append(
                    ProductProxy(f"p{n}", self.store, clock, gpu, serves, lag)
                )
            else:
                tell = self._teller(n)
                self.proxies.append(Proxy(f"p{n}", self.store, clock, gpu, tell, fresh))

    def _teller(self, number: int) -> Callable[[str], None]:
        def tell(what: str) -> None:
            if what:
                self.story.append(f"{what}{number}")

        return tell

    def replace(self, index: int) -> None:
        """Kill a controller where it is and start a new process in its place."""
        self.puppets[index].kill()
        self.incarnations[index] += 1
        self.puppets[index] = self._make(index, f"c{index}.{self.incarnations[index]}")

    @property
    def phase(self) -> Phase:
        return self.store.snapshot(GPU).phase

    @property
    def leases(self) -> Sequence[Lease]:
        return self.store.snapshot(GPU).leases

    def _stopping(self) -> None:
        flights = sum(len(proxy.flights) for proxy in (*self.proxies, *self.product_proxies))
        cause = self.store.snapshot(GPU).state.get("cause", "")
        if flights and cause != "down_now":
            self.cuts.append(f"{flights} in flight when stopped for {cause}")
        said = self.clock() - self.node.said_busy_at < 2 * self.gpu.timing.heartbeat
        if self.node.works and said and cause != "down_now":
            self.cuts.append(f"the node's own work when stopped for {cause}")

    def _down(self) -> None:
        for proxy in (*self.proxies, *self.product_proxies):
            proxy.cut()

    def close(self) -> None:
        for proxy in self.product_proxies:
            proxy.close()
        for puppet in self.puppets:
            puppet.kill()

    def transitions(self) -> Sequence[tuple[str, str, str, str]]:
        """All of them: from, to, cause, failure."""
        return [
            (
                event.fields["from"],
                event.fields["to"],
                event.fields["cause"],
                event.fields["failure"],
            )
            for event in self.store.events(GPU, 100_000)
            if event.kind == "transition"
        ]
