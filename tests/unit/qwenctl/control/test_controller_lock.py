"""A call to the cloud is made only while the lock is certain to outlive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qwenctl.clouds.base import Accepted, Observation
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import LOCK_MARGIN, Controller
from qwenctl.core.phase import Observed
from qwenctl.core.snapshot import Lock, Outcome, Snapshot
from tests.support.virtual_time import VirtualClock

CALL_TIMEOUT = 10.0


class Cloud:
    """A stopped instance that notes when it is started, and how often it is looked at."""

    call_timeout = CALL_TIMEOUT
    observe_interval = 2.0

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.started: list[float] = []
        self.looks = 0
        self.look_takes = 0.0
        self.on_look: Callable[[], None] = lambda: None
        self.fault: Exception | None = None

    def describe(self) -> Observation:
        self.looks += 1
        self.on_look()
        self.clock.advance(self.look_takes)
        return Observation(Observed.STOPPED, "i-1")

    def start(self) -> Accepted:
        self.started.append(self.clock())
        if self.fault:
            raise self.fault
        return Accepted()


class StartingStore:
    """A store in whose GPU a start is due."""

    connected = 1

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.acquire_takes = 0.0
        self.epoch, self.taken = 1, True
        self.called = False
        self.look_at: float | None = None

    def acquire(self, _gpu: str, owner: str, ttl: float) -> tuple[Lock, bool, float]:
        self.clock.advance(self.acquire_takes)
        taken, self.taken = self.taken, False
        return Lock(owner, self.epoch), taken, ttl

    def snapshot(self, gpu: str) -> Snapshot:
        now = self.clock()
        lease: Any = type("Lease", (), {"expiry": now + 60.0, "is_work": False})()
        state = {"phase": "starting", "since": f"{(now - 1) * 1000:.0f}"}
        if self.called:
            state["called_at"] = f"{now * 1000:.0f}"
        if self.look_at is not None:
            state["look_at"] = f"{self.look_at * 1000:.0f}"
        return Snapshot(gpu, now, state, leases=(lease,))

    def record_observation(self, *_: Any, **__: Any) -> None:
        pass

    def record_call(self, *_: Any, **__: Any) -> Outcome:
        self.called = True
        return Outcome.OK


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def cloud(clock: VirtualClock) -> Cloud:
    return Cloud(clock)


@pytest.fixture
def store(clock: VirtualClock) -> StartingStore:
    return StartingStore(clock)


@pytest.fixture
def controller(clock: VirtualClock, cloud: Cloud, store: StartingStore) -> Controller:
    made: Any = (store, cloud)
    return Controller("main", GpuConfig(), *made, owner="test", monotonic=clock)


def test_a_call_is_made_while_the_lock_outlives_it(controller: Controller, cloud: Cloud) -> None:
    controller.step()
    assert len(cloud.started) == 1


def test_a_lock_that_lasts_but_not_for_the_whole_call_is_renewed_first(
    controller: Controller, cloud: Cloud
) -> None:
    cloud.look_takes = LOCK_MARGIN + 0.5  # of 15 s, 9.5 s are left for a call of 10 s
    assert controller.step() == 0.0
    assert cloud.started == []
    controller.step()  # now the observation is there, and the lock new
    assert len(cloud.started) == 1


def test_the_time_that_the_store_took_to_answer_is_no_time_of_the_lock(
    controller: Controller, cloud: Cloud, store: StartingStore
) -> None:
    store.acquire_takes = LOCK_MARGIN + 0.5  # the lock may have been taken at its beginning
    assert controller.step() == 0.0
    assert cloud.started == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_lock_of_another_epoch_voids_what_was_seen_in_the_last(
    controller: Controller, cloud: Cloud, store: StartingStore, taken: bool
) -> None:
    store.called = True  # nothing to do but to look
    controller.step()
    controller.step()
    assert cloud.looks == 1
    # The lock was lost and taken again; by its own name, as far as the answer shows.
    store.epoch, store.taken = 2, taken
    controller.step()
    assert cloud.looks == 2


def test_an_answer_is_as_old_as_its_question(
    controller: Controller, cloud: Cloud, store: StartingStore, clock: VirtualClock
) -> None:
    """Somebody who asks for a look while one is under way gets another."""
    store.called, cloud.look_takes = True, 3.0

    def asks() -> None:
        clock.advance(1.0)
        store.look_at = clock()
        cloud.on_look = lambda: None

    cloud.on_look = asks
    controller.step()
    assert cloud.looks == 2


def test_a_start_that_broke_may_have_been_accepted(
    controller: Controller, cloud: Cloud, store: StartingStore
) -> None:
    """So nothing is started again before the cloud has been looked at."""
    cloud.fault = RuntimeError("a provider's own fault")
    with pytest.raises(RuntimeError):
        controller.step()
    looks = cloud.looks
    with pytest.raises(RuntimeError):
        controller.step()
    assert (cloud.looks, len(cloud.started)) == (looks + 1, 2)
