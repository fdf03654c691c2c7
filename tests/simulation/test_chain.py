"""Two instances for one GPU in clouds of bad manners: the one that works is never surplus.

An instance that serves and is left out by an answer goes on serving; a second that others start is
stopped as soon as the clouds show both.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from qwenctl.clouds.base import NoCapacity
from qwenctl.clouds.fallback import Fallback
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.store.store import Store
from tests.simulation.manners import RudeCloud
from tests.simulation.puppets import GPU
from tests.simulation.walk import BOOT, HALT, IDLE, LOAD, TIMING
from tests.simulation.world import Node
from tests.support.virtual_time import VirtualClock

MANNERS = ("as of a moment ago", "left out", "in two states", "denied", "throttled", "cut")
"""Those whose answers do not depend on which instance is looked at first."""

ONE_LOOK = 60.0 + 2 * TIMING.call_grace + BOOT
"""Seconds from when the clouds show two instances that are on until one is being stopped: a settled
GPU is looked at once a minute, and what is starting can be stopped when it runs."""

MINUTES = 20.0


class Chain:
    """One controller of two candidates, each with an agent; time passes a second at a time."""

    def __init__(self, store: Store, clock: VirtualClock, seed: int) -> None:
        self.random, self.store, self.clock = random.Random(seed), store, clock
        self.clouds = [RudeCloud(clock, self.random, boot=BOOT, halt=HALT) for _ in range(2)]
        self.nodes = [Node(store, clock, cloud, LOAD) for cloud in self.clouds]
        self.cuts: list[str] = []
        self.empty_until = 0.0
        """How long the preferred candidate has no capacity."""
        for number, (cloud, node) in enumerate(zip(self.clouds, self.nodes, strict=True)):
            cloud.name = f"i-{number + 1}"
            cloud.heard = lambda node=node: clock() - node.reported_at < 2 * TIMING.heartbeat
            cloud.on_stop = lambda node=node: self._stopping(node)
        self.clouds[0].refuse_start = lambda: (
            NoCapacity("none is free") if clock() < self.empty_until else None
        )
        gpu = GpuConfig(idle_timeout=IDLE, boot_estimate=30.0, timing=TIMING)
        provider = Fallback([(cloud.name, cloud) for cloud in self.clouds], monotonic=clock)
        provider.observe_interval = 2.0
        self.controller = Controller(GPU, gpu, store, provider, monotonic=clock)
        self.both_since: float | None = None
        self.longest_both = 0.0

    def _stopping(self, node: Node) -> None:
        said = self.clock() - node.said_busy_at < 2 * TIMING.heartbeat
        if node.works and said:
            self.cuts.append(f"{node.cloud.name} works")

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            if self.clock() % TIMING.heartbeat < 1.0:
                for node in self.nodes:
                    node.speak()
            self.controller.step()
            on = all(cloud.state in (Observed.STARTING, Observed.RUNNING) for cloud in self.clouds)
            if not on or any(cloud.misbehaves for cloud in self.clouds):
                self.both_since = None
            elif self.both_since is None:
                self.both_since = self.clock()
            else:
                self.longest_both = max(self.longest_both, self.clock() - self.both_since)

    def live(self, minutes: float) -> None:
        end = self.clock() + 60.0 * minutes
        events: list[Callable[[], object]] = [
            self._want,
            self._work,
            self._misbehave,
            self._others_start,
            self._out_of_stock,
            self._another_is_shown,
        ]
        while self.clock() < end:
            self.random.choice(events)()
            self.run(self.random.choice([2.0, 10.0, 40.0]))
            assert not self.cuts
            assert self.longest_both <= ONE_LOOK

    def _want(self) -> None:
        self.store.demand(GPU, "request:ada", IDLE, reason="test", actor="ada")

    def _work(self) -> None:
        if self.store.snapshot(GPU).phase is Phase.READY:
            serving = self.store.snapshot(GPU).state.get("instance_id")
            for node in self.nodes:
                if node.cloud.name == serving:
                    node.works_until = self.clock() + self.random.choice([30.0, 120.0])

    def _misbehave(self) -> None:
        cloud = self.random.choice(self.clouds)
        cloud.behave(self.random.choice(MANNERS), self.random.choice([3.0, 20.0, 60.0]))
        self.store.look(GPU, actor="test", cause="a connection broke")

    def _another_is_shown(self) -> None:
        """The one that works is left out as others start the second."""
        self._want()
        self.run(30.0)
        self._work()
        self.run(TIMING.heartbeat)
        for cloud, node in zip(self.clouds, self.nodes, strict=True):
            if node.works:
                cloud.behave("left out", self.random.choice([3.0, 20.0]))
            else:
                cloud.behave_well()
                cloud.start_outside()
        self.run(BOOT)
        self.store.look(GPU, actor="test", cause="a connection broke")

    def _others_start(self) -> None:
        """EC2 starts a reclaimed spot instance again, or a person does."""
        if self.random.random() < 0.5:
            self.random.choice(self.clouds).start_outside()

    def _out_of_stock(self) -> None:
        self.empty_until = self.clock() + 60.0


@pytest.mark.parametrize("seed", range(4))
def test_the_instance_that_works_is_never_surplus(
    store: Store, clock: VirtualClock, seed: int
) -> None:
    chain = Chain(store, clock, seed)
    chain.live(MINUTES)
    assert all(cloud.starts and cloud.stops for cloud in chain.clouds)


def test_without_the_serving_rule_it_would_be(
    store: Store, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Controller, "_only_serving", lambda _, seen, __: seen)
    for seed in range(20):
        chain = Chain(store, clock, seed)
        with contextlib.suppress(AssertionError):
            chain.live(MINUTES)
        if chain.cuts:
            return
    raise AssertionError("all went well without the rule: they see nothing")
