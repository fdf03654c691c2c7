"""A random walk: time, people, faults and everybody's instructions in random order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import redis

from qwenctl.clouds.base import Conflict, Denied, NoCapacity, ProviderError, Throttled, Transient
from qwenctl.config.gpu import GpuConfig, TimingConfig
from qwenctl.core.phase import TRANSITIONS, Observed, Phase
from tests.simulation.product_proxy import ProductProxy
from tests.simulation.puppets import GPU, Cloud, PointedController
from tests.simulation.world import World
from tests.support.virtual_time import VirtualClock

IDLE = 20.0
TIMING = TimingConfig(
    drain=3.0,
    start=60.0,
    boot=60.0,
    load=90.0,
    call_grace=15.0,
    heartbeat=5.0,
    node_lost=60.0,
    retry=5.0,
    retry_max=40.0,
)
BOOT, HALT, LOAD = 12.0, 6.0, 8.0

READY_WITHIN = 600.0
"""From the last fault, with demand: an instance that hangs is given up, stopped, the longest backoff
waited out, and then it boots."""
OFF_WITHIN = IDLE + TIMING.drain + HALT + 120.0
"""From the last request: the idle timeout, the drain time, the stop, and leases of dead proxies,
controllers' locks and slow looks at the cloud."""

"""Which transitions the walks have taken, all together."""


class Walk:
    """One random run; the seed says it all."""

    def __init__(
        self,
        client: redis.Redis,
        deployment: str,
        seed: int,
        kind: type[PointedController] = PointedController,
    ) -> None:
        self.random, self.client = random.Random(seed), client
        self.clock = VirtualClock()
        self.world = World(
            client,
            deployment,
            self.clock,
            GpuConfig(
                idle_timeout=IDLE,
                boot_estimate=30.0,
                timing=TIMING,
                found_running=self.random.choice(["adopt", "stop"]),
            ),
            controllers=self.random.choice([2, 3]),
            boot=BOOT,
            halt=HALT,
            load=LOAD,
            kind=kind,
            product=True,
            cloud=self.new_cloud(),
        )
        self.troubled = True
        self.frozen: dict[int, float] = {}
        """Controllers that stand still → until when."""
        self.calling: dict[int, float] = {}
        """Controllers inside a cloud call → when that ends at the latest."""
        self.node_due = 0.0
        self.node_sees_use = self.random.random() < 0.5
        """Whether the node reports the requests that proxies forward as activity."""
        cloud = self.world.cloud
        cloud.refuse_start = lambda: self._refusal(
            NoCapacity, Throttled, Transient, Conflict, Denied
        )
        cloud.refuse_stop = lambda: self._refusal(Throttled, Transient, Conflict, Denied)
        cloud.refuse_describe = lambda: self._refusal(Throttled, Transient, Denied)
        cloud.leaves_out = self._left_out
        self.left_out_until = 0.0
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (60, self._controller),
            (14, self._request),
            (3, self._visit),
            (12, self._end),
            (30, self._time),
            (6, self._proxy),
            (1, self._long_silence),
            (2, self._freeze),
            (1, self._kill),
            (2, self._redis_fails),
            (1, self._instance),
            (1, self._mood),
            (2, self._omission),
            (1, self._spot),
            (1, self._person),
            (1, self._emptied),
        ]

    def new_cloud(self) -> Cloud:
        return Cloud(self.clock, boot=BOOT, halt=HALT)

    def _refusal(self, *kinds: type[ProviderError]) -> ProviderError | None:
        if not self.troubled or self.random.random() > 0.12:
            return None
        kind = self.random.choice(kinds)
        accepted = "accepted" if kind is Transient and self.random.random() < 0.5 else ""
        return kind("the cloud says no", cloud_code=accepted)

    def _left_out(self) -> bool:
        """Whether the cloud's answer lacks the instance: never while its agent is silent, too.

        Two witnesses that fail at the same time are believed.
        """
        now, node = self.clock(), self.world.node
        heard = now - node.reported_at < 2 * TIMING.heartbeat
        return self.troubled and heard and now < self.left_out_until

    # What may happen

    def _controller(self) -> None:
        index = self.random.randrange(len(self.world.puppets))
        puppet = self.world.puppets[index]
        if self.frozen.get(index, 0.0) > self.clock():
            return
        if puppet.at == "pass" and puppet.due > self.clock() and self.random.random() < 0.8:
            return
        self._move(index)

    def _move(self, index: int) -> None:
        puppet = self.world.puppets[index]
        before = puppet.at
        after = puppet.go()
        if after == "check" and self.troubled and self.random.random() < 0.25:
            # The worst moment to be frozen: all is decided, and the call not yet made.
            self.frozen[index] = self.clock() + self.random.choice([4.0, 12.0, 60.0])
        if before == "check" and after.startswith("call:"):
            # The call takes effect, and ends, at any moment until its timeout, and not later.
            self.calling[index] = self.clock() + self.world.cloud.call_timeout
        elif not after.startswith("call"):
            self.calling.pop(index, None)

    def _request(self) -> None:
        proxy = self.random.choice(self.world.product_proxies)
        if len(proxy.flights) + proxy.held < 4:
            proxy.request(self.random.choice("abcd"))

    def _visit(self) -> None:
        self.random.choice(self.world.product_proxies).visit(self.random.choice("abcd"))

    def _end(self) -> None:
        proxy = self.random.choice(self.world.product_proxies)
        if proxy.flights:
            proxy.end(self.random.choice(proxy.flights))

    def _proxy(self) -> None:
        proxy = self.random.choice(self.world.product_proxies)
        if self.random.random() < 0.02:
            proxy.stall(self.random.choice([2.0, 20.0, 120.0]))
        else:
            proxy.news()

    def _time(self) -> None:
        self._pass(self.random.choice([0.01, 0.1, 0.5, 1.0, 3.0]))

    def _long_silence(self) -> None:
        """Nobody wants it for long, so that it comes to draining and off."""
        for proxy in self.world.product_proxies:
            proxy.give_up()
            if self.random.random() < 0.8:
                self._end_all(proxy)
        for _ in range(self.random.randrange(10, 60)):
            self._pass(self.random.choice([0.5, 1.0]))
            self._controllers_work()

    def _freeze(self) -> None:
        index = self.random.randrange(len(self.world.puppets))
        self.frozen[index] = self.clock() + self.random.choice([1.0, 8.0, 12.0, 30.0])

    def _kill(self) -> None:
        index = self.random.randrange(len(self.world.puppets))
        self.world.replace(index)
        self.calling.pop(index, None)

    def _redis_fails(self) -> None:
        puppet = self.random.choice(self.world.puppets)
        puppet.store.faults.append(self.random.choice(["lost", "answer"]))

    def _instance(self) -> None:
        cloud = self.world.cloud
        self.random.choice([cloud.die, cloud.start_outside, cloud.stop_outside])()
        if self.random.random() < 0.5:
            self.world.store.look(GPU, actor="p0", cause="the connection broke")

    def _emptied(self) -> None:
        """FLUSHALL, or a failover to an empty server.

        Not amid a call: a successor cannot wait out a lock that is lost.
        """
        busy = any(puppet.at.startswith(("call", "check")) for puppet in self.world.puppets)
        if not busy:
            self.client.delete(*self.world.store.keys(GPU))

    def _omission(self) -> None:
        self.left_out_until = self.clock() + self.random.choice([0.1, 5.0, 90.0])

    def _spot(self) -> None:
        """The cloud announces that it takes the instance back; when, `_instance` decides."""
        self.world.node.interrupted = True

    def _mood(self) -> None:
        self.world.node.mood = self.random.choice(
            ["well", "well", "well", "mute", "broken", "stuck"]
        )

    def _person(self) -> None:
        store = self.world.store
        cut = self.random.random() < 0.3
        wishes: list[Callable[[], object]] = [
            lambda: store.release(GPU, actor="ada", force_stop=cut),
            lambda: store.block(
                GPU, "maintenance:ada", 20.0, reason="x", actor="ada", force_stop=cut
            ),
            lambda: store.unblock(GPU, actor="ada"),
            lambda: store.pin(GPU, "pin:ada", 15.0, reason="up", actor="ada"),
        ]
        self.random.choice(wishes)()

    # Time

    def _deadline(self) -> float:
        """How far time may go before something must have happened."""
        return min(
            *(proxy.due for proxy in self.world.product_proxies),
            *self.calling.values(),
            self.node_due,
        )

    def _pass(self, seconds: float) -> None:
        end = self.clock() + seconds
        while self.clock() < end:
            self.clock.advance(max(0.0, min(end, self._deadline()) - self.clock()))
            for proxy in self.world.product_proxies:
                if proxy.due <= self.clock():
                    proxy.run_due()
            for index, until in list(self.calling.items()):
                while index in self.calling and until <= self.clock():
                    self._move(index)
            if self.node_due <= self.clock():
                self.node_due = self.clock() + TIMING.heartbeat
                if self.node_sees_use:
                    self.world.node.active = sum(len(p.flights) for p in self.world.product_proxies)
                self.world.node.speak()

    def _controllers_work(self) -> None:
        for index, puppet in enumerate(self.world.puppets):
            if self.frozen.get(index, 0.0) <= self.clock():
                for _ in range(60):
                    if puppet.at == "pass" and puppet.due > self.clock():
                        break
                    self._move(index)

    # The run

    def go(self, steps: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for _ in range(steps):
            _, action = self.random.choices(self.actions, weights)[0]
            action()
            self.check()

    def check(self) -> None:
        assert not self.world.cuts
        assert not self.world.cloud.second_starts

    def heal(self) -> None:
        """From now on nothing fails any more."""
        self.troubled = False
        self.frozen.clear()
        self.world.node.mood = "well"
        for puppet in self.world.puppets:
            puppet.store.faults.clear()
        self.world.store.unblock(GPU, actor="ada")
        for proxy in self.world.product_proxies:  # every request comes to its end
            proxy.stalled_until = self.clock()
            self._end_all(proxy)

    def _end_all(self, proxy: ProductProxy) -> None:
        for flight in list(proxy.flights):
            proxy.end(flight)

    def until(self, phase: Phase, truth: Observed, within: float, *, demand: bool) -> None:
        """Work on until the GPU is in that phase, truly, which must be so in time."""
        end = self.clock() + within
        while not (self.world.phase is phase and self.world.cloud.state is truth):
            assert self.clock() < end, (
                f"{self.world.phase.value} instead of {phase.value} after {within} s; "
                f"{self.world.transitions()[-12:]}"
            )
            if demand and not any(proxy.held for proxy in self.world.product_proxies):
                self.world.product_proxies[0].request("a")
            self._controllers_work()
            self._pass(0.5)
            self.check()

    def settle(self) -> None:
        """With demand it becomes ready, without it becomes off."""
        self.heal()
        self.until(Phase.READY, Observed.RUNNING, READY_WITHIN, demand=True)
        for proxy in self.world.product_proxies:
            proxy.give_up()
            self._end_all(proxy)
        self.until(Phase.OFF, Observed.STOPPED, OFF_WITHIN, demand=False)

    def check_history(self) -> set[tuple[Phase, Phase]]:
        """Every transition is in the table, follows the one before, and failures say why.

        Return the transitions.
        """
        at = "off"
        seen = set()
        for source, target, cause, failure in self.world.transitions():
            assert source == at
            assert Phase(target) in TRANSITIONS[Phase(source)]
            assert cause
            if target == "failed":
                problem = json.loads(failure)
                assert problem["code"]
                assert problem["message"]
                assert problem["attempts"] >= 1
            seen.add((Phase(source), Phase(target)))
            at = target
        epochs = [
            int(event.fields["epoch"])
            for event in self.world.store.events(GPU, 100_000)
            if event.kind == "transition"
        ]
        assert epochs == sorted(epochs)
        return seen
