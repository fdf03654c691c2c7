"""A store that has lost what it knew: no work that somebody vouches for is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from proxy.data.usage import INFLIGHT_TTL, RENEW
from qwenctl.clouds.base import Accepted, Denied
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.store.store import Store
from tests.simulation.life import IDLE, Life
from tests.simulation.puppets import GPU
from tests.support.virtual_time import VirtualClock

HEARTBEAT = 5.0


class Lost(Life):
    """A GPU whose proxy and agent say what they have to as late as their rules allow."""

    def __init__(self, store: Store, clock: VirtualClock, client: redis.Redis) -> None:
        super().__init__(store, clock)
        self.client: Any = client
        self.in_flight = False
        self.connections = 0

    def settings(self, **settings: Any) -> None:
        gpu = self.gpu.model_copy(update=settings)
        self.controller = Controller(GPU, gpu, self.store, self.cloud, monotonic=self.clock)

    def flush(self) -> None:
        self.client.delete(*self.store.keys(GPU))

    def save(self) -> Callable[[], None]:
        """Return what makes the store as it is now: a failover to a stale replica."""
        keys = [key for key in self.store.keys(GPU) if self.client.exists(key)]
        for key in keys:
            self.client.copy(key, f"{key}:saved", replace=True)

        def restore() -> None:
            self.flush()
            for key in keys:
                self.client.copy(f"{key}:saved", key, replace=True)
            self.connections += 1

        return restore

    def pass_time(self, seconds: float) -> None:
        """Let proxy and agent renew what they hold, each a whole interval from now."""
        end = self.clock() + seconds
        touched = spoke = self.clock()
        while self.clock() < end:
            self.step()
            if self.in_flight and self.clock() - touched >= RENEW:
                touched = self.clock()
                self.store.touch(GPU, "inflight:p", INFLIGHT_TTL, [], actor="p")
            if self.clock() - spoke >= HEARTBEAT:
                spoke = self.clock()
                before = self.node.said_hello_at
                self.node.speak()
                if self.node.said_hello_at != before:  # it says hello at once, and reports at once
                    self.node.speak()
                    self.node.speak()
            self.clock.advance(0.25)


@pytest.fixture
def life(
    store: Store, clock: VirtualClock, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Lost:
    life = Lost(store, clock, client)
    monkeypatch.setattr(Store, "connected", property(lambda _: life.connections))
    return life


@pytest.mark.parametrize("who", ["proxy", "agent"])
@pytest.mark.parametrize("how", ["stop", "block"])
class TestEmptied:
    def test_running_work_goes_on(self, life: Lost, who: str, how: str) -> None:
        life.settings(found_running="stop" if how == "stop" else "adopt")
        life.wake()
        life.in_flight, life.node.active = who == "proxy", int(who == "agent")
        life.pass_time(20)
        life.flush()
        if how == "block":  # a holder writes the block of a schedule anew
            life.store.block(GPU, "off-hours:night", None, reason="night", actor="holder")
        life.pass_time(120)
        assert life.cloud.stops == []
        assert life.now.working
        life.in_flight, life.node.active = False, 0
        life.store.touch(GPU, "inflight:p", 0.0, [], actor="p")
        life.pass_time(60)
        assert (life.phase(), life.cloud.state) == (Phase.OFF, Observed.STOPPED)

    def test_nobody_vouches(self, life: Lost, who: str, how: str) -> None:
        """What was found is stopped, soon; a mute agent makes it no longer than its grace."""
        life.settings(found_running="stop" if how == "stop" else "adopt")
        life.wake()
        life.node.mood = "mute" if who == "proxy" else "well"
        life.pass_time(20)
        life.flush()
        if how == "block":
            life.store.block(GPU, "off-hours:night", None, reason="night", actor="holder")
        began = life.clock()
        life.pass_time(40)
        assert life.phase() is Phase.OFF
        assert 4.0 <= life.cloud.stops[0] - began <= 14.0


@pytest.mark.parametrize("who", ["proxy", "agent"])
class TestStale:
    def begin(self, life: Lost, who: str) -> None:
        life.wake()
        life.pass_time(30)
        self.who = who

    def work(self, life: Lost) -> None:
        life.in_flight, life.node.active = self.who == "proxy", int(self.who == "agent")

    def test_ready_with_expired_leases(self, life: Lost, who: str) -> None:
        self.begin(life, who)
        restore = life.save()
        life.pass_time(500)
        life.demand()
        self.work(life)
        life.pass_time(200)  # the leases of the saved state have expired
        restore()
        life.pass_time(60)
        assert life.cloud.stops == []
        assert life.now.working

    def test_a_drain_that_was_over_long_ago(self, life: Lost, who: str) -> None:
        """The last moments before a crash are lost: a request had ended the drain."""
        self.begin(life, who)
        life.store.release(GPU, actor="ada")
        life.pass_time(1)
        assert life.phase() is Phase.DRAINING
        restore = life.save()
        life.demand()
        self.work(life)
        life.pass_time(60)
        assert life.phase() is Phase.READY
        restore()
        life.pass_time(60)
        assert life.cloud.stops == []
        assert life.now.working

    def test_a_failure_that_was_repaired(self, life: Lost, who: str) -> None:
        self.begin(life, who)
        life.node.mood = "broken"
        life.node.speak()
        life.step()
        assert life.phase() is Phase.FAILED
        restore = life.save()
        life.node.mood = "well"
        self.work(life)
        life.clock.advance(30.0)
        restore()
        life.pass_time(60)
        assert life.cloud.stops == []

    @pytest.mark.parametrize("seconds", [0, 3, 30, 700])
    def test_a_stop_of_an_earlier_boot(self, life: Lost, who: str, seconds: float) -> None:
        life.cloud.halt = 10.0
        self.begin(life, who)
        life.store.release(GPU, actor="ada")
        while life.phase() is not Phase.STOPPING:
            life.pass_time(1)
        restore = life.save()
        life.pass_time(40)
        assert life.phase() is Phase.OFF
        life.cloud.stops.clear()
        life.wake()
        self.work(life)
        life.pass_time(seconds)
        restore()
        life.pass_time(100)
        assert life.cloud.stops == []
        assert life.now.working


def test_a_new_leader_gives_everybody_the_time_of_a_drain(life: Lost) -> None:
    life.wake()
    life.store.release(GPU, actor="ada")
    life.pass_time(1)
    assert life.phase() is Phase.DRAINING
    life.clock.advance(60.0)
    life.settings()
    began = life.clock()
    life.pass_time(20)
    assert life.cloud.stops[0] - began >= 4.0


def test_what_was_started_by_us_drains_no_longer_than_its_drain(life: Lost) -> None:
    life.wake()
    life.pass_time(20)
    life.node.mood = "mute"
    life.store.release(GPU, actor="ada")
    began = life.clock()
    life.pass_time(20)
    assert life.cloud.stops[0] - began <= 4.5


class TestEmptiedDuringACall:
    """The store loses everything while the cloud answers a call."""

    def during(self, life: Lost, verb: str) -> None:
        call = getattr(life.cloud, verb)

        def losing() -> Accepted:
            accepted = call()
            life.flush()
            life.connections += 1
            return accepted

        setattr(life.cloud, verb, losing)

    def test_start(self, life: Lost) -> None:
        """What was started is taken over, and not started twice."""
        life.cloud.boot = 5.0
        self.during(life, "start")
        life.demand()
        life.pass_time(3)
        life.demand()  # a held request renews its demand
        life.pass_time(60)
        assert len(life.cloud.starts) == 1
        assert life.phase() is Phase.READY

    def test_start_that_nobody_wants_any_more(self, life: Lost) -> None:
        life.cloud.boot = 5.0
        self.during(life, "start")
        life.demand()
        life.pass_time(IDLE + 120)
        assert (life.phase(), life.cloud.state) == (Phase.OFF, Observed.STOPPED)
        assert len(life.cloud.starts) == 1

    @pytest.mark.parametrize("halt", [0.0, 10.0])
    def test_stop(self, life: Lost, halt: float) -> None:
        life.cloud.halt = halt
        life.wake()
        life.pass_time(20)
        self.during(life, "stop")
        life.store.release(GPU, actor="ada")
        life.pass_time(60)
        assert (life.phase(), life.cloud.state) == (Phase.OFF, Observed.STOPPED)
        assert len(life.cloud.stops) == 1


def test_a_successor_finishes_a_stop_with_a_drain_of_its_own(life: Lost) -> None:
    life.wake()
    life.pass_time(20)
    life.cloud.refuse_stop = lambda: Denied("no permission")
    life.store.release(GPU, actor="ada")
    life.pass_time(10)
    assert life.phase() is Phase.STOPPING
    life.cloud.refuse_stop = lambda: None
    life.settings()
    began = life.clock()
    life.pass_time(60)
    assert life.phase() is Phase.OFF
    assert 4.0 <= life.cloud.stops[-1] - began <= 30.0


def test_a_successor_cuts_at_once_what_was_to_be_cut(life: Lost) -> None:
    life.wake()
    life.in_flight = True
    life.pass_time(20)
    life.cloud.refuse_stop = lambda: Denied("no permission")
    life.store.release(GPU, actor="ada", force_stop=True)
    life.pass_time(5)
    life.cloud.refuse_stop = lambda: None
    life.settings()
    life.pass_time(15)  # a call's grace
    assert len(life.cloud.stops) == 1
