from __future__ import annotations

import time

import pytest

from qwenctl.clouds.base import (
    Accepted,
    Conflict,
    Denied,
    MultiInstanceProvider,
    NoCapacity,
    NotFound,
    Observation,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.clouds.fallback import AVOID_SECONDS, SETTLE_SECONDS, Fallback
from qwenctl.core.phase import Observed
from tests.unit.qwenctl.clouds.contract import ProviderContract

_SETTLED = {Observed.STARTING: Observed.RUNNING, Observed.STOPPING: Observed.STOPPED}


_SETTLED = {Observed.STARTING: Observed.RUNNING, Observed.STOPPING: Observed.STOPPED}


class Machine:
    """An instance that is where it should be at once, and refuses as told."""

    call_timeout, observe_interval = 10.0, 0.01

    def __init__(self, name: str, clock: list[float]) -> None:
        self.name, self._clock = name, clock
        self.state = Observed.STOPPED
        self.reason = ""
        self.refusal: ProviderError | None = None
        self.blind: ProviderError | None = None
        self.start_takes = self.stop_takes = self.takes = self.moved_at = 0.0
        self.starts = self.stops = 0

    def describe(self) -> Observation:
        if self.blind:
            raise self.blind
        running = self.state is Observed.RUNNING
        seen = Observation(
            self.state, self.name, f"{self.name}.example" if running else "", self.reason
        )
        if time.monotonic() >= self.moved_at + self.takes:  # the next look finds it settled
            self.state = _SETTLED.get(self.state, self.state)
        return seen

    def _move(self, state: Observed) -> None:
        self.state, self.moved_at = state, time.monotonic()

    @property
    def on(self) -> bool:
        return self.state in (Observed.STARTING, Observed.RUNNING)

    def start(self) -> Accepted:
        self._clock[0] += self.start_takes
        if self.refusal:
            raise self.refusal
        assert not self.on, "somebody starts what is on"
        self._move(Observed.STARTING)
        self.starts += 1
        return Accepted(f"start-{self.name}")

    def stop(self) -> Accepted:
        self._clock[0] += self.stop_takes
        if self.refusal:
            raise self.refusal
        self._move(Observed.STOPPING)
        self.stops += 1
        return Accepted(f"stop-{self.name}")


class Fleet:
    def __init__(self) -> None:
        self.clock = [1000.0]
        self.machines = [Machine(name, self.clock) for name in ("spot", "zone-b", "zone-c")]
        self.spot, self.b, self.c = self.machines
        self.provider = Fallback(
            [(each.name, each) for each in self.machines], monotonic=lambda: self.clock[0]
        )

    @property
    def starts(self) -> list[int]:
        return [each.starts for each in self.machines]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


NO_STOCK = NoCapacity("no such machine is free", cloud_code="OperationDenied.NoStock")


def test_the_preferred_one_is_started_while_it_can_be(fleet: Fleet) -> None:
    assert fleet.provider.start() == Accepted("start-spot")
    seen = fleet.provider.describe()
    assert (seen.state, seen.instance_id) == (Observed.STARTING, "spot")
    assert fleet.starts == [1, 0, 0]


@pytest.mark.parametrize("refusal", [NO_STOCK, NotFound("it has been released")])
def test_the_next_one_is_started_and_the_note_says_why(
    fleet: Fleet, refusal: ProviderError
) -> None:
    fleet.spot.refusal = fleet.b.refusal = refusal
    accepted = fleet.provider.start()
    assert fleet.starts == [0, 0, 1]
    assert accepted.request_id == "start-zone-c"
    assert accepted.note == f"zone-c was started instead of spot: {refusal}; zone-b: {refusal}"
    fleet.provider.describe()
    seen = fleet.provider.describe()
    assert (seen.state, seen.address) == (Observed.RUNNING, "zone-c.example")


def test_a_preferred_one_that_comes_back_is_used_at_the_next_start(fleet: Fleet) -> None:
    fleet.spot.refusal = NO_STOCK
    fleet.provider.start()
    fleet.spot.refusal = None
    fleet.provider.describe()
    fleet.provider.stop()
    fleet.provider.describe()
    assert fleet.provider.start() == Accepted("start-spot")
    assert fleet.starts == [1, 1, 0]


def test_if_none_can_be_started_all_reasons_are_said(fleet: Fleet) -> None:
    for each in fleet.machines:
        each.refusal = NO_STOCK
    with pytest.raises(NoCapacity, match=r"none of the 3 candidates.*spot: .*zone-b: .*zone-c: "):
        fleet.provider.start()
    fleet.c.refusal = None  # the next round begins anew
    assert fleet.provider.start().request_id == "start-zone-c"


@pytest.mark.parametrize("refusal", [Transient("cut"), Denied("no"), Throttled("slowly")])
def test_after_any_other_error_no_other_one_is_tried(fleet: Fleet, refusal: ProviderError) -> None:
    """A start that was not answered may have been accepted."""
    fleet.spot.refusal = refusal
    with pytest.raises(type(refusal)):
        fleet.provider.start()
    assert fleet.starts == [0, 0, 0]


def test_a_start_that_was_accepted_all_the_same_is_not_repeated(fleet: Fleet) -> None:
    fleet.spot.refusal = NO_STOCK
    fleet.b.refusal = Transient("cut")
    with pytest.raises(Transient):
        fleet.provider.start()
    fleet.b.refusal, fleet.b.state = None, Observed.STARTING
    assert fleet.provider.start() == Accepted()
    assert fleet.starts == [0, 0, 0]


@pytest.mark.parametrize("state", [Observed.STARTING, Observed.RUNNING])
def test_nothing_is_started_while_any_is_on(fleet: Fleet, state: Observed) -> None:
    fleet.c.state = state
    assert fleet.provider.start() == Accepted()
    assert fleet.starts == [0, 0, 0]


@pytest.mark.parametrize("state", [Observed.STOPPING, Observed.UNKNOWN])
def test_nothing_is_started_while_one_is_neither_on_nor_off(fleet: Fleet, state: Observed) -> None:
    fleet.b.state = state
    with pytest.raises(Conflict, match="zone-b is"):
        fleet.provider.start()
    assert fleet.starts == [0, 0, 0]


def test_nothing_is_started_while_one_cannot_be_looked_at(fleet: Fleet) -> None:
    fleet.c.blind = Transient("its region does not answer")
    with pytest.raises(Transient):
        fleet.provider.start()
    with pytest.raises(Transient):
        fleet.provider.describe()
    assert fleet.starts == [0, 0, 0]


@pytest.mark.parametrize("trouble", [Transient("its region does not answer"), Denied("expired")])
def test_one_that_is_on_is_stopped_although_another_cannot_be_looked_at(
    fleet: Fleet, trouble: ProviderError
) -> None:
    fleet.b.state, fleet.spot.blind = Observed.RUNNING, trouble
    seen = fleet.provider.describe()
    assert (seen.state, seen.instance_id) == (Observed.RUNNING, "zone-b")
    assert f"spot cannot be looked at: {trouble}" in seen.reason
    assert fleet.provider.stop().request_id == "stop-zone-b"
    fleet.provider.describe()
    with pytest.raises(type(trouble)):  # whether all are off, nobody knows
        fleet.provider.describe()


@pytest.mark.parametrize("answer", [None, Transient("cut")], ids=["accepted", "unanswered"])
def test_no_other_one_is_started_before_the_cloud_has_shown_what_it_did(
    fleet: Fleet, answer: ProviderError | None
) -> None:
    """The controller may ask again when what it noted of the first call is lost."""
    fleet.spot.refusal = answer
    if answer:
        with pytest.raises(Transient):
            fleet.provider.start()
    else:
        fleet.provider.start()
    fleet.spot.refusal, fleet.spot.state = None, Observed.STOPPED  # it does not show yet
    for _ in range(3):
        fleet.clock[0] += 9.0
        with pytest.raises(Conflict, match="spot was started"):
            fleet.provider.start()
    assert fleet.starts[1:] == [0, 0]
    fleet.clock[0] += SETTLE_SECONDS
    used = "start-zone-b" if answer is None else "start-spot"
    assert fleet.provider.start().request_id == used


def test_a_start_of_long_ago_says_nothing(fleet: Fleet) -> None:
    """Another replica has done the rest; this one has not seen it run."""
    fleet.provider.start()
    fleet.spot.state = Observed.STOPPED
    fleet.clock[0] += AVOID_SECONDS + 1
    assert fleet.provider.start() == Accepted("start-spot")


def test_the_one_that_serves_goes_on_serving_and_a_surplus_one_is_stopped(fleet: Fleet) -> None:
    """EC2 starts a reclaimed spot instance again by itself."""
    assert isinstance(fleet.provider, MultiInstanceProvider)
    fleet.b.state = fleet.spot.state = Observed.RUNNING
    fleet.provider.serving("zone-b")
    seen = fleet.provider.describe()
    assert (seen.instance_id, seen.surplus) == ("zone-b", True)
    assert "spot is on as well" in seen.reason
    fleet.provider.stop_surplus()
    assert [each.stops for each in fleet.machines] == [1, 0, 0]
    fleet.provider.describe()
    assert fleet.provider.describe() == Observation(Observed.RUNNING, "zone-b", "zone-b.example")


def test_one_that_is_to_be_avoided_is_started_last_for_a_while(fleet: Fleet) -> None:
    """The cloud takes it back soon after each start."""
    assert isinstance(fleet.provider, MultiInstanceProvider)
    fleet.spot.state = Observed.RUNNING
    fleet.provider.describe()
    fleet.spot.state = Observed.STOPPED
    fleet.provider.describe()
    fleet.provider.avoid()
    fleet.b.refusal = fleet.c.refusal = NO_STOCK
    assert fleet.provider.start().request_id == "start-spot"  # better than none
    fleet.spot.state, fleet.b.refusal = Observed.STOPPED, None
    fleet.clock[0] += SETTLE_SECONDS + AVOID_SECONDS
    assert fleet.provider.start() == Accepted("start-spot")
    fleet.spot.state = Observed.RUNNING
    fleet.provider.describe()
    fleet.spot.state = Observed.STOPPED
    fleet.provider.avoid()
    assert fleet.provider.start() == Accepted("start-zone-b")


def test_a_surplus_one_that_starts_is_stopped_once_it_runs(fleet: Fleet) -> None:
    fleet.b.state, fleet.spot.state = Observed.RUNNING, Observed.STARTING
    fleet.spot.takes = 3600.0
    fleet.spot.moved_at = time.monotonic()
    fleet.c.state = Observed.RUNNING
    fleet.provider.serving("zone-b")
    assert fleet.provider.describe().surplus
    with pytest.raises(Conflict, match="spot is stopped as soon as it runs"):
        fleet.provider.stop_surplus()
    assert [each.stops for each in fleet.machines] == [0, 0, 1]
    fleet.spot.takes = 0.0
    fleet.provider.describe()
    fleet.provider.stop_surplus()
    assert [each.stops for each in fleet.machines] == [1, 0, 1]


def test_one_that_serves_and_cannot_be_seen_hands_over_to_nobody(fleet: Fleet) -> None:
    fleet.spot.state = Observed.RUNNING
    assert fleet.provider.describe().instance_id == "spot"
    fleet.spot.blind, fleet.b.state = Transient("slow"), Observed.RUNNING
    for _ in range(2):
        with pytest.raises(Transient):
            fleet.provider.describe()
    fleet.provider.stop_surplus()
    assert [each.stops for each in fleet.machines] == [0, 0, 0]
    fleet.spot.blind = None
    fleet.provider.serving("spot")
    assert fleet.provider.describe().surplus
    fleet.provider.stop_surplus()
    assert [each.stops for each in fleet.machines] == [0, 1, 0]


def test_one_that_is_gone_is_passed_over_without_a_call(fleet: Fleet) -> None:
    """EC2 lists a terminated instance for an hour, and refuses its start for its state."""
    fleet.spot.state = Observed.ABSENT
    fleet.spot.refusal = Conflict("IncorrectInstanceState")
    assert fleet.provider.start().note.startswith("zone-b was started instead of spot")
    for each in fleet.machines:
        each.state = Observed.ABSENT
    fleet.clock[0] += AVOID_SECONDS + 1
    with pytest.raises(NotFound):
        fleet.provider.start()


def test_stops_end_within_the_time_of_a_call(fleet: Fleet) -> None:
    for each in fleet.machines:
        each.state, each.stop_takes = Observed.RUNNING, 10.0
    with pytest.raises(Conflict, match="stopped next"):
        fleet.provider.stop()
    assert fleet.clock[0] - 1000 <= fleet.provider.call_timeout
    fleet.provider.describe()
    fleet.provider.stop()
    assert [each.stops for each in fleet.machines] == [1, 1, 1]


def test_one_that_falls_back_after_its_start_was_accepted_is_passed_over(fleet: Fleet) -> None:
    """EC2 finds out some seconds later that it has no such machine."""
    fleet.provider.start()
    fleet.clock[0] += SETTLE_SECONDS
    fleet.spot.state, fleet.spot.reason = Observed.STOPPED, "EC2 had no such machine free"
    assert fleet.provider.describe().reason == "spot: EC2 had no such machine free"
    accepted = fleet.provider.start()
    assert accepted.note == "zone-b was started instead of spot: EC2 had no such machine free"
    # The same once more: that one is tried last now, and the round goes on with the third.
    fleet.clock[0] += SETTLE_SECONDS
    fleet.b.state, fleet.b.reason = Observed.STOPPED, "EC2 had no such machine free"
    assert fleet.provider.start().request_id == "start-zone-c"
    fleet.provider.describe()
    fleet.provider.describe()
    fleet.provider.stop()
    fleet.provider.describe()
    fleet.clock[0] += AVOID_SECONDS + 1
    assert fleet.provider.start().request_id == "start-spot"


def test_a_round_that_takes_too_long_goes_on_at_the_next_call(fleet: Fleet) -> None:
    """The controller's lock must outlive the call."""
    for each in fleet.machines[:2]:
        each.refusal, each.start_takes = NO_STOCK, 10.0
    with pytest.raises(Conflict, match="tried next"):
        fleet.provider.start()
    assert fleet.clock[0] - 1000 <= fleet.provider.call_timeout
    accepted = fleet.provider.start()
    assert accepted.request_id == "start-zone-c"
    assert accepted.note.startswith("zone-c was started instead of spot: no such machine is free")


def test_all_that_are_on_are_stopped(fleet: Fleet) -> None:
    """Somebody has started a second one by hand."""
    fleet.spot.state = fleet.c.state = Observed.RUNNING
    seen = fleet.provider.describe()
    assert (seen.state, seen.instance_id) == (Observed.RUNNING, "spot")
    assert "zone-c is on as well" in seen.reason
    fleet.provider.stop()
    assert [each.stops for each in fleet.machines] == [1, 0, 1]


def test_one_that_cannot_be_stopped_keeps_no_other_on(fleet: Fleet) -> None:
    fleet.spot.state = fleet.c.state = Observed.RUNNING
    fleet.spot.refusal = Throttled("slowly")
    with pytest.raises(Throttled):
        fleet.provider.stop()
    assert fleet.c.stops == 1
    fleet.provider.describe()
    assert fleet.provider.describe().instance_id == "spot"  # still on, so the stop is tried again


def test_the_one_that_is_on_speaks_for_all(fleet: Fleet) -> None:
    fleet.spot.state, fleet.b.state = Observed.STOPPING, Observed.RUNNING
    assert fleet.provider.describe().instance_id == "zone-b"
    for each in fleet.machines:
        each.state = Observed.ABSENT
    assert fleet.provider.describe().state is Observed.ABSENT
    fleet.c.state = Observed.STOPPED
    assert fleet.provider.describe().state is Observed.STOPPED


class TestContract(ProviderContract):
    @pytest.fixture
    def provider(self, fleet: Fleet) -> Fallback:
        self.fleet = fleet
        fleet.spot.refusal = NO_STOCK
        fleet.b.takes = 0.3
        return fleet.provider

    def count_starts(self, provider: Fallback) -> int:
        return sum(self.fleet.starts)

    def count_stops(self, provider: Fallback) -> int:
        return sum(each.stops for each in self.fleet.machines)


@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), ValueError("no JSON"), None])
def test_a_candidate_whose_provider_breaks_is_unknown_and_the_serving_one_goes_on(
    fleet: Fleet, fault: Exception | None
) -> None:
    """A third party's provider may raise anything, or return it."""
    fleet.provider.start()
    fleet.provider.describe()

    def describe() -> Observation:
        if fault is not None:
            raise fault
        return Observation("stopped")  # type: ignore[arg-type]

    fleet.b.describe = describe  # type: ignore[method-assign]
    seen = fleet.provider.describe()
    assert (seen.state, seen.instance_id, seen.surplus) == (Observed.RUNNING, "spot", False)
    assert "zone-b cannot be looked at: its provider broke" in seen.reason
    fleet.spot.state = Observed.STOPPED
    with pytest.raises(ProviderError, match="broke"):
        fleet.provider.describe()
    with pytest.raises(ProviderError, match="broke"):
        fleet.provider.start()  # it may be on
    assert fleet.starts == [1, 0, 0]


def test_a_candidate_whose_stop_breaks_does_not_keep_the_others_on(fleet: Fleet) -> None:
    def stop() -> Accepted:
        raise KeyError("id")

    fleet.spot.state = fleet.c.state = Observed.RUNNING
    fleet.spot.stop = stop  # type: ignore[method-assign]
    with pytest.raises(ProviderError, match="broke"):
        fleet.provider.stop()
    assert fleet.c.stops == 1
