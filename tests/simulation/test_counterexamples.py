"""Every run in which the model of the protocol cuts a request, replayed on the real parts.

The model checks the protocol of docs/architecture.md exhaustively and prints, for each of its rules, a run that
goes wrong when that rule is taken away. Here each of those runs happens step by step to the real
store and controllers. With the rules in place nothing is cut; with the rule taken away the very
request of the model is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import pytest
import redis

from proxy.data.snapshot_cache import FRESH
from proxy.data.usage import WRITE_BACK
from qwenctl.config.gpu import GpuConfig, TimingConfig
from qwenctl.control.controller import LOCK_MARGIN, Controller
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Lock
from tests.simulation.puppets import (
    GPU,
    PointedController,
    Puppet,
    WithoutEpochRule,
    WithoutLockRule,
)
from tests.simulation.world import World
from tests.support.virtual_time import VirtualClock

IDLE = 1.0
LOOK = 0.1
"""How soon after a call the cloud is looked at; well within the shortest lease."""
LOCK = 5.0 + LOCK_MARGIN
"""How long the controller lock lasts with the simulated cloud's call timeout."""
ROUND_TRIP = 0.01
"""Seconds from writing to the lease being there."""

NO_LOCK_RULE = (
    "wake0 > lock0 > starting0 > tick > CLOUD START by 0 > ready0 > drain0 > tick > tick > lock0"
    " > tick > refresh1 > stopping0 > tick > lock1 > restop1 > rescue1 > CLOUD STOP by 0"
)
NO_EPOCH_RULE = (
    "wake0 > lock0 > starting0 > tick > CLOUD START by 0 > ready0 > drain0 > tick > tick > lock0"
    " > tick > refresh1 > stopping0 > tick > lock1 > restop1 > rescue1 > tick > tick > lock0"
    " > CLOUD STOP by 0"
)
STALE = (
    "wake0 > lock0 > starting0 > tick > CLOUD START by 0 > ready0 > refresh1 > drain0 > tick > tick"
    " > tick > forward1 > lock0 > stopping0 > CLOUD STOP by 0"
)
SHORT_DRAIN = (
    "wake0 > lock0 > starting0 > tick > CLOUD START by 0 > ready0 > refresh1 > drain0 > tick"
    " > forward1 > tick > lock0 > stopping0 > CLOUD STOP by 0"
)


def steps(trace: str) -> list[str]:
    """The model's steps, less those that only let time pass, look, or hold the lock."""
    passing = re.compile(r"(tick|lock|renew|refresh|restop|restart)\d?$")
    forwards = trace.replace("rescue", "forward")  # by the lease that ends a drain
    return [step for step in forwards.split(" > ") if not passing.match(step)]


@pytest.fixture
def make(
    client: redis.Redis, deployment: str, clock: VirtualClock
) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def build(
        kind: type[PointedController] = PointedController,
        drain: float = 4.0,
        fresh: float = FRESH,
    ) -> World:
        def adjust(controller: Controller) -> None:
            # Past the configuration, which refuses a drain time below 3 s.
            timings = dataclasses.replace(controller._timings, drain=drain, observe_moving=LOOK)
            controller._timings = timings

        gpu = GpuConfig(idle_timeout=IDLE, boot_estimate=0.0, timing=TimingConfig(drain=3.0))
        world = World(client, deployment, clock, gpu, kind=kind, adjust=adjust, fresh=fresh)
        worlds.append(world)
        return world

    yield build
    for world in worlds:
        world.close()


def pass_time(world: World, seconds: float) -> None:
    """Time goes by, and the proxies do what is due meanwhile."""
    end = world.clock() + seconds
    while world.clock() < end:
        world.clock.advance(min(0.25, end - world.clock()))
        for proxy in world.proxies:
            proxy.release_held()
            if proxy.due <= world.clock():
                proxy.write()


def become_ready(world: World, puppet: Puppet) -> None:
    """The start call has been made: a look, boot, hello, ready."""
    puppet.go_to("pass")
    pass_time(world, 2 * LOOK)
    for _ in range(2):
        puppet.go_to("pass")
        world.node.speak()
        puppet.go()
    puppet.go_to("pass")
    if world.phase is not Phase.READY:
        puppet.finish_pass()
    assert world.phase is Phase.READY


def wake_until_ready(world: World) -> None:
    """``wake0 > lock0 > starting0 > CLOUD START by 0 > ready0``, the beginning of every run."""
    world.proxies[0].visit("ada")
    world.puppets[0].go_past("call:start")
    become_ready(world, world.puppets[0])


def drain(world: World) -> None:
    """``drain0``: the last lease has run out."""
    world.clock.advance(IDLE)
    world.puppets[0].go_past("transition:ready>draining")
    assert world.phase is Phase.DRAINING


def freeze_before_the_stop_call(world: World) -> None:
    """Up to ``restop1 > rescue1``: controller 0 is frozen between its transition to ``stopping`` and
    its stop call; a successor has begun the drain anew, and a request has ended it."""
    zero, one = world.puppets
    wake_until_ready(world)
    drain(world)
    pass_time(world, 4.0)
    zero.go_past("transition:draining>stopping")
    zero.go_to("check")
    pass_time(world, LOCK)
    one.go_past("transition:stopping>draining")
    world.proxies[1].request("bob")
    assert world.phase is Phase.READY
    assert world.proxies[1].flights


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no-rule"])
def test_a_leader_frozen_before_its_stop_call(make: Callable[..., World], rule: bool) -> None:
    world = make(PointedController if rule else WithoutLockRule)
    freeze_before_the_stop_call(world)
    world.puppets[0].finish_pass()  # it thaws
    expected = steps(NO_LOCK_RULE)
    if rule:
        assert world.story == expected[:-1]
        assert world.cuts == []
        assert world.proxies[1].flights
        assert world.phase is Phase.READY
    else:
        assert world.story[: len(expected)] == expected
        assert world.cuts == ["1 in flight when stopped for demand"]


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no-rule"])
def test_a_decision_of_an_earlier_epoch(make: Callable[..., World], rule: bool) -> None:
    world = make(PointedController if rule else WithoutEpochRule)
    freeze_before_the_stop_call(world)
    pass_time(world, LOCK)  # controller 1 is silent until its lock has run out
    zero = world.puppets[0]
    epoch = int(world.store.snapshot(GPU).lock["epoch"])
    zero.finish_pass()
    zero.finish_pass()
    assert world.store.snapshot(GPU).leader == zero.name  # it leads again,
    assert int(world.store.snapshot(GPU).lock["epoch"]) == epoch + 1  # in a new epoch
    expected = steps(NO_EPOCH_RULE)
    if rule:
        assert world.story == expected[:-1]
        assert world.cuts == []
        assert world.phase is Phase.READY
    else:
        assert world.story[: len(expected)] == expected
        assert world.cuts == ["1 in flight when stopped for demand"]


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no-rule"])
def test_a_stale_snapshot_is_not_used(make: Callable[..., World], rule: bool) -> None:
    world = make(fresh=FRESH if rule else float("inf"))
    wake_until_ready(world)
    world.clock.advance(IDLE - 0.001)
    world.proxies[1].refresh()
    world.clock.advance(0.001)
    world.puppets[0].go_past("transition:ready>draining")
    pass_time(world, 4.0)
    world.puppets[0].go_to("transition:draining>stopping")  # decided; the store checks once more
    world.proxies[1].request("bob")
    pass_time(world, 0.5)  # within the write-back interval
    zero = world.puppets[0]
    zero.finish_pass()
    zero.finish_pass()
    expected = steps(STALE)
    if rule:
        assert world.story == [*expected[:5], "forward1"]
        assert world.phase is Phase.READY
        assert world.cuts == []
    else:
        assert world.story[: len(expected)] == expected
        assert world.cuts == ["1 in flight when stopped for idle"]


@pytest.mark.parametrize("seconds", [4.0, 3.0, 2.0])
def test_draining_lasts_longer_than_news_travels(
    make: Callable[..., World], seconds: float
) -> None:
    """The youngest snapshot that still says ready is used at its last moment, and the news of that
    request is written at its last moment: S + W after the move to ``draining``."""
    world = make(drain=seconds)
    zero, proxy = world.puppets[0], world.proxies[1]
    wake_until_ready(world)
    world.clock.advance(IDLE)
    proxy.refresh()
    assert proxy.snapshot.phase is Phase.READY
    zero.go_past("transition:ready>draining")
    world.clock.advance(FRESH)
    proxy.request("bob")  # its snapshot is exactly as old as it may be
    assert proxy.flights
    world.clock.advance(WRITE_BACK)
    late = proxy.due
    if seconds <= FRESH + WRITE_BACK:
        zero.finish_pass()  # the write is under way, the drain time is over
        zero.finish_pass()
    world.clock.advance(ROUND_TRIP)
    assert world.clock() - late < 0.02
    proxy.write()
    while world.clock() < late + 3 * seconds:
        zero.finish_pass()
        pass_time(world, 0.25)
    expected = steps(SHORT_DRAIN)
    if seconds > FRESH + WRITE_BACK:
        # The controller sees the lease and goes back.
        assert world.story == [*expected[:6], "undrain0"]
        assert world.cuts == []
        assert world.phase is Phase.READY
    else:
        assert world.story[: len(expected)] == expected
        assert world.cuts == ["1 in flight when stopped for idle"]


def test_the_shortest_drain_time_is_longer_than_news_travels() -> None:
    """What the configuration allows, and what the two sides of the protocol really do."""
    with pytest.raises(ValueError, match="greater than or equal to 3"):
        TimingConfig(drain=2.0)
    assert TimingConfig(drain=3.0).drain > FRESH + WRITE_BACK


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "no-rule"])
def test_a_transition_of_an_earlier_epoch(make: Callable[..., World], rule: bool) -> None:
    """Frozen before the transition itself: the script refuses an epoch that is over. Without that
    check the old leader's move counts beside the new leader's."""
    world = make()
    zero, one = world.puppets
    if not rule:
        script = zero.store._scripts["transition"]
        zero.store._scripts["transition"] = script.replace(
            "if not holds(owner, epoch) then return 'epoch' end", ""
        )
        assert zero.store._scripts["transition"] != script
        zero.store._shas["transition"] = "0" * 40  # of no script, so that the text is sent
    world.proxies[0].visit("ada")
    zero.go_to("transition:off>starting")
    world.clock.advance(LOCK)
    world.proxies[0].visit("ada")
    lock, taken, _ = world.store.acquire(GPU, one.name, LOCK)
    assert lock == Lock(one.name, 2)
    assert taken
    zero.finish_pass()
    if rule:
        assert world.phase is Phase.OFF
        assert world.transitions() == []
    else:
        assert world.phase is Phase.STARTING
        assert world.store.snapshot(GPU).state["epoch"] == "1"
    assert world.cloud.starts == []  # the rule of calls holds in either case


def test_a_request_forwarded_as_the_agent_is_given_up(make: Callable[..., World]) -> None:
    """The move to ``failed`` is made by what the agent does not say, while the service still works:
    a request forwarded from the last good snapshot must be waited for like any other."""
    world = make()
    zero, proxy = world.puppets[0], world.proxies[1]
    wake_until_ready(world)
    world.store.pin(GPU, "pin:ada", 3600.0, reason="up", actor="ada")
    for _ in range(int(world.gpu.timing.node_lost / 4)):  # it leads all the time
        world.clock.advance(4.0)
        zero.finish_pass()
    assert world.phase is Phase.READY
    world.clock.advance(4.0)
    proxy.refresh()
    zero.go()
    zero.go_past("transition:ready>failed")
    proxy.request("bob")
    assert proxy.flights
    for _ in range(60):  # long, but the agent's and not the request's fault
        pass_time(world, 1.0)
        zero.finish_pass()
    assert world.phase is Phase.FAILED
    assert world.cuts == []
    proxy.end(proxy.flights[0])
    for _ in range(10):
        pass_time(world, 1.0)
        zero.finish_pass()
    assert world.cloud.stops
    assert world.cuts == []
