"""A cloud that answers badly, and a walk of long lives with it.

Its answers are stale by up to a minute, lack the instance, contradict themselves, are denied,
throttled, cut, or slow; it accepts calls and says that it did not. What it does is right: the
instance starts and stops as it was told.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

import redis

from qwenctl.clouds.base import Accepted, Denied, Observation, Throttled, Transient
from qwenctl.core.phase import Observed, Phase
from tests.simulation.puppets import GPU, Cloud, PointedController
from tests.simulation.walk import BOOT, HALT, IDLE, TIMING, Walk
from tests.support.virtual_time import VirtualClock

__all__ = ["MANNERS", "OFF_WITHIN", "RudeCloud", "RudeWalk"]

STALE = 60.0
"""How old an answer may be, in seconds."""

MANNERS = (
    "as of a moment ago",
    "older and newer",
    "left out",
    "in two states",
    "denied",
    "throttled",
    "cut",
    "slow",
)

OFF_WITHIN = IDLE + TIMING.dead_man
"""How long an instance may run without demand, in seconds."""


class RudeCloud(Cloud):
    """See above. ``heard``: whether the agent has just been heard of."""

    def __init__(
        self, clock: VirtualClock, chance: random.Random, *, boot: float, halt: float
    ) -> None:
        self._past: list[tuple[float, Observed]] = [(float("-inf"), Observed.STOPPED)]
        super().__init__(clock, boot=boot, halt=halt)
        self._chance = chance
        self._manner = ""
        self._since = self._until = float("-inf")
        self.shown: set[str] = set()
        """The manners that some answer has had."""
        self.heard: Callable[[], bool] = lambda: True

    def behave(self, manner: str, seconds: float) -> None:
        self._manner, self._since = manner, self._clock()
        self._until = self._clock() + min(seconds, STALE if "ago" in manner else seconds)
        self.slow = manner == "slow"

    def behave_well(self) -> None:
        self._manner, self.slow = "", False

    @property
    def misbehaves(self) -> bool:
        return bool(self._manner) and self._clock() < self._until

    def _enter(self, state: Observed, seconds: float) -> None:
        super()._enter(state, seconds)
        now = self._clock()
        self._past = [entry for entry in self._past if entry[0] <= now]
        self._past.append((now, state))
        if state is Observed.STARTING:
            self._past.append((now + seconds, Observed.RUNNING))
        elif state is Observed.STOPPING:
            self._past.append((now + seconds, Observed.STOPPED))

    def _was(self, at: float) -> Observation:
        index = bisect_right([time for time, _ in self._past], at) - 1
        return self.shows(self._past[index][1])

    def describe(self) -> Observation:
        if not self._manner or self._clock() >= self._until:
            self.behave_well()
            return super().describe()
        self.shown.add(self._manner)
        if self._manner == "as of a moment ago":
            return self._was(self._since)
        if self._manner == "older and newer":
            return self._was(self._clock() - self._chance.choice([0.0, 2.0, 15.0, STALE]))
        if self._manner == "left out" and self.heard():
            return Observation(Observed.ABSENT, self.name, reason="there is no such instance")
        if self._manner == "in two states":
            return Observation(Observed.UNKNOWN, self.name, reason="it is running and stopped")
        refusal = {"denied": Denied, "throttled": Throttled, "cut": Transient}.get(self._manner)
        if refusal:
            raise refusal("the cloud says no")
        return super().describe()

    def start(self) -> Accepted:
        self._refuse()
        return super().start()

    def stop(self) -> Accepted:
        self._refuse()
        return super().stop()

    def _refuse(self) -> None:
        if self._clock() < self._until:
            refusal = {"denied": Denied, "throttled": Throttled}.get(self._manner)
            if refusal:
                raise refusal("the cloud says no")


class RudeWalk(Walk):
    """Hours of a GPU that is used now and then, in a `RudeCloud`."""

    def __init__(
        self,
        client: redis.Redis,
        deployment: str,
        seed: int,
        kind: type[PointedController] = PointedController,
    ) -> None:
        super().__init__(client, deployment, seed, kind)
        cloud = self.cloud
        cloud.heard = lambda: self.clock() - self.world.node.reported_at < 2 * TIMING.heartbeat
        cloud.refuse_start = cloud.refuse_stop = self._half_accepted
        cloud.refuse_describe = lambda: None
        cloud.leaves_out = lambda: False
        self.wanted_at = self.clock()
        """When somebody wanted the GPU last."""
        self.longest_unwanted = 0.0
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self._behave),
            (30, self._request),
            (25, self._end),
            (8, self._visit),
            (10, self._own_work),
            (10, self._block),
            (6, self._silence),
            (30, self._work_alone),
            (15, self._down_as_a_request_comes),
            (4, self._person),
            (3, self._stall),
            (3, self._freeze),
            (2, self._kill),
            (2, self._instance),
            (2, self._mood),
            (2, self._spot),
        ]

    def new_cloud(self) -> RudeCloud:
        return RudeCloud(self.clock, self.random, boot=BOOT, halt=HALT)

    @property
    def cloud(self) -> RudeCloud:
        cloud = self.world.cloud
        assert isinstance(cloud, RudeCloud)
        return cloud

    def _half_accepted(self) -> Transient | None:
        if not self.troubled or self.random.random() > 0.1:
            return None
        return Transient("cut", cloud_code=self.random.choice(["accepted", ""]))

    # What may happen

    def _behave(self, manners: Sequence[str] = MANNERS) -> None:
        seconds = self.random.choice([3.0, 3.0, 20.0, 60.0, 150.0])
        self.cloud.behave(self.random.choice(manners), seconds)
        if self.random.random() < 0.7:  # or the next look comes in a minute
            self.world.store.look(GPU, actor="p0", cause="a connection broke")

    def _own_work(self) -> None:
        if self.world.phase is Phase.READY:
            self.world.node.works_until = self.clock() + self.random.choice([20.0, 60.0, 200.0])

    def _block(self) -> None:
        """Work that runs is waited for."""
        self.world.store.block(
            GPU, "maintenance:ada", self.random.choice([10.0, 60.0]), reason="x", actor="ada"
        )

    def _stall(self) -> None:
        self.random.choice(self.world.product_proxies).stall(self.random.choice([5.0, 60.0]))

    def _silence(self) -> None:
        """Nobody wants it any more, for minutes."""
        for proxy in self.world.product_proxies:
            proxy.give_up()
            self._end_all(proxy)
        self.world.node.works_until = self.clock()
        self.live(self.random.choice([30.0, 90.0, 300.0]))

    def _work_alone(self) -> None:
        """All clients go away while the node works on, and the cloud answers badly meanwhile."""
        self._own_work()
        for proxy in self.world.product_proxies:
            proxy.give_up()
            self._end_all(proxy)
        self.live(self.random.choice([2.0, 30.0]))
        self._behave(MANNERS[:3])
        if self.random.random() < 0.5:
            self._block()
        self.live(self.random.choice([30.0, 90.0, 180.0]))

    def _down_as_a_request_comes(self) -> None:
        """`qwenctl down`, of which a proxy has not heard that has just written its use."""
        proxy, world = self.random.choice(self.world.product_proxies), self.world
        for each in world.product_proxies:
            each.give_up()
            self._end_all(each)
        self._pass(0.01)
        proxy.news()
        world.store.release(GPU, actor="ada")
        for puppet in world.puppets:
            puppet.due = self.clock()
        self._controllers_work()
        self.live(self.random.uniform(0.0, 0.8))
        proxy.request("d")
        self.live(2.0)

    def _move(self, index: int) -> None:
        super()._move(index)
        if self.world.puppets[index].at == "described":
            self.frozen[index] = self.clock() + self.random.uniform(0.0, 20.0)

    # Time

    def live(self, seconds: float) -> None:
        end = self.clock() + seconds
        while self.clock() < end:
            self._controllers_work()
            due = (puppet.due for puppet in self.world.puppets if puppet.due > self.clock())
            self._pass(min(end - self.clock(), max(0.1, min(due, default=1.0) - self.clock()), 1.0))
            self._note_demand()
            self.check()

    def _note_demand(self) -> None:
        now, world = self.clock(), self.world
        used = any(proxy.flights or proxy.held for proxy in world.product_proxies)
        asked = any(not lease.name.startswith("adopted:") for lease in world.leases)
        if used or asked or world.node.works or world.cloud.state is not Observed.RUNNING:
            self.wanted_at = now
        self.longest_unwanted = max(self.longest_unwanted, now - self.wanted_at)

    def check(self) -> None:
        assert not self.world.cuts
        assert self.longest_unwanted <= OFF_WITHIN

    def run(self, minutes: float) -> None:
        """Live so long with random events."""
        end = self.clock() + 60.0 * minutes
        weights = [weight for weight, _ in self.actions]
        while self.clock() < end:
            _, action = self.random.choices(self.actions, weights)[0]
            action()
            for puppet in self.world.puppets:  # a change is published
                if self.random.random() < 0.9:
                    puppet.due = min(puppet.due, self.clock())
            self.live(self.random.choice([0.5, 2.0, 6.0, 15.0]))

    def heal(self) -> None:
        super().heal()
        self.cloud.behave_well()
        self.world.node.works_until = self.clock()
