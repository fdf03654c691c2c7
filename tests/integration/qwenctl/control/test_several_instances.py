"""Several instances for one GPU, and markets that take instances back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from qwenctl.clouds.base import Observation
from qwenctl.clouds.fallback import Fallback
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.store.store import Store
from tests.simulation.life import Life, LyingCloud
from tests.simulation.puppets import GPU
from tests.support.virtual_time import VirtualClock


class Named(LyingCloud):
    """One of several instances."""

    name = ""

    def describe(self) -> Observation:
        return replace(super().describe(), instance_id=self.name)


def pinned_chain(
    store: Store, clock: VirtualClock, **latencies: float
) -> tuple[Life, Named, Named]:
    """A pinned GPU of two instances, the preferred one first; ``latencies``: of the other one."""
    life = Life(store, clock)
    first, second = Named(clock), Named(clock, **latencies)
    first.name, second.name = "i-1", "i-2"
    life.node.cloud = first
    provider = Fallback([("one", first), ("two", second)], monotonic=clock)
    life.controller = Controller(GPU, life.gpu, store, provider, monotonic=clock)
    store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    return life, first, second


def test_a_surplus_instance_that_starts_is_stopped_soon_after_it_runs(
    store: Store, clock: VirtualClock
) -> None:
    """Not only at the next slow look: until then two are billed."""
    life, serving, other = pinned_chain(store, clock, boot=20.0)
    life.run(90.0)
    assert life.phase() is Phase.READY
    other.start_outside()
    ran_at = clock() + 20.0
    life.run(5.0)
    store.look(GPU, actor="test", cause="test")  # it is seen while it starts
    life.run(80.0)
    assert len(other.stops) == 1
    assert ran_at <= other.stops[0] <= ran_at + 16.0
    assert life.phase() is Phase.READY
    assert serving.stops == []


def test_the_serving_instance_is_never_surplus_because_the_cloud_left_it_out_once(
    store: Store, clock: VirtualClock
) -> None:
    """Its agent reports, and a generation runs on it."""
    life, serving, other = pinned_chain(store, clock)
    life.run(90.0)
    assert life.phase() is Phase.READY
    address = life.now.address
    other.start_outside()
    for _ in range(3):
        serving.lie = Observed.ABSENT
        assert life.look() is Phase.READY
        assert (life.now.state["instance_id"], life.now.address) == ("i-1", address)
    life.run(80.0)
    assert serving.stops == []
    assert len(other.stops) == 1
    assert life.phase() is Phase.READY


def test_a_market_that_takes_each_boot_back_soon_is_asked_less_and_less(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, boot=5.0, halt=5.0)
    store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    for _ in range(1800):
        life.node.interrupted = life.node.interrupted or life.phase() is Phase.READY
        life.run(1.0)
    pauses = [round(b - a) for a, b in pairwise(life.cloud.starts)]
    assert pauses[0] < 60  # the first counts for nothing
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[-1] >= life.gpu.timing.retry_max
    assert len(pauses) < 12
    # A good while of use, and it is as if nothing had been.
    life.run(400.0)
    assert life.phase() is Phase.READY
    life.run(600.0)
    life.node.interrupted = True
    began = clock()
    life.run(60.0)
    assert life.phase() is Phase.READY
    assert began < life.cloud.starts[-1] < began + 60
    assert life.now.failure is None


def test_the_fallback_goes_first_when_the_preferred_one_is_taken_back_again_and_again(
    store: Store, clock: VirtualClock
) -> None:
    life, spot, other = pinned_chain(store, clock)
    for _ in range(300):
        life.node.interrupted = life.node.interrupted or life.phase() is Phase.READY
        life.run(1.0)
    assert (len(spot.starts), len(other.starts)) == (2, 1)
    assert other.state is Observed.RUNNING
