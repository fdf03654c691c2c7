"""The lock and the phases in `qwenctl.store` on a real Valkey, under virtual time."""

from __future__ import annotations

import pytest
import redis

from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard
from qwenctl.core.snapshot import Lock, Outcome
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import (
    GPU,
    P,
    bring,
    demand,
    leases,
    move,
    report,
    snap,
)
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast


class TestLock:
    def test_one_owner_at_a_time(self, store: Store, clock: VirtualClock) -> None:
        assert store.acquire(GPU, "a", 10) == (Lock("a", 1), True, 10)
        clock.advance(4)
        assert store.acquire(GPU, "b", 10) == (None, False, 6)
        assert store.acquire(GPU, "a", 10) == (Lock("a", 1), False, 10)  # renewed
        assert snap(store).leader == "a"
        clock.advance(10)
        assert snap(store).leader == ""
        assert store.acquire(GPU, "b", 10) == (Lock("b", 2), True, 10)

    def test_an_expired_lock_is_taken_anew_by_its_owner_too(
        self, store: Store, clock: VirtualClock
    ) -> None:
        store.acquire(GPU, "a", 10)
        clock.advance(10)
        assert store.acquire(GPU, "a", 10) == (Lock("a", 2), True, 10)

    def test_given_back(self, store: Store) -> None:
        lock, _, _ = store.acquire(GPU, "a", 10)
        assert lock
        store.release_lock(GPU, Lock("b", 1))
        assert store.acquire(GPU, "b", 10)[0] is None
        store.release_lock(GPU, lock)
        assert store.acquire(GPU, "b", 10) == (Lock("b", 2), True, 10)

    def test_an_earlier_epoch_can_write_nothing(self, store: Store, clock: VirtualClock) -> None:
        old, _, _ = store.acquire(GPU, "a", 10)
        assert old
        clock.advance(10)
        for _ in range(2):  # while nobody holds it, and once somebody else does
            assert move(store, old, P.STARTING) is Outcome.EPOCH
            assert store.record_call(GPU, old, P.OFF, "start") is Outcome.EPOCH
            assert store.record_observation(GPU, old, state="running") is Outcome.EPOCH
            store.acquire(GPU, "b", 10)
        assert dict(snap(store).state) == {}
        clock.advance(10)
        store.acquire(GPU, "a", 10)  # the same owner in another epoch
        assert move(store, old, P.STARTING) is Outcome.EPOCH
        assert move(store, Lock("a", 3), P.STARTING) is Outcome.OK


class TestTransition:
    def test_what_it_records(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        failure = Failure("no_capacity", 'no "A10" left', 2, clock() + 20.5, instance_is_bad=False)
        assert move(store, lock, P.FAILED, cause="no_capacity", failure=failure) is Outcome.OK
        now = snap(store)
        assert (now.phase, now.since, now.failure) == (P.FAILED, clock(), failure)
        (event,) = store.events(GPU)
        assert event.kind == "transition"
        assert event.time == clock()
        assert Failure.decode(event.fields["failure"]) == failure
        assert {key: event.fields[key] for key in ("from", "to", "cause", "actor", "epoch")} == {
            "from": "off",
            "to": "failed",
            "cause": "no_capacity",
            "actor": "c0",
            "epoch": "1",
        }

    def test_only_from_the_phase_it_was_decided_in(self, store: Store, lock: Lock) -> None:
        step = Move(P.BOOTING, "running")
        outcome = store.transition(GPU, lock, P.STARTING, step, drain=4, idle_timeout=60)
        assert outcome is Outcome.PHASE
        assert store.events(GPU) == []

    def test_one_that_is_not_in_the_table(self, store: Store, lock: Lock) -> None:
        with pytest.raises(ValueError, match="no transition from off to ready"):
            move(store, lock, P.READY)

    def test_wanted_and_unwanted(self, store: Store, lock: Lock) -> None:
        assert move(store, lock, P.STARTING, Guard.WANTED) is Outcome.GUARD
        demand(store)
        store.block(GPU, "budget", None, reason="x", actor="x")
        assert move(store, lock, P.STARTING, Guard.WANTED) is Outcome.GUARD
        store.unblock(GPU, actor="x")
        assert move(store, lock, P.STARTING, Guard.WANTED) is Outcome.OK
        assert move(store, lock, P.OFF, Guard.UNWANTED) is Outcome.GUARD
        store.release(GPU, actor="x")
        assert move(store, lock, P.OFF, Guard.UNWANTED) is Outcome.OK

    def test_idle(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.DRAINING)
        clock.advance(3.999)
        assert move(store, lock, P.STOPPING, Guard.IDLE) is Outcome.GUARD
        clock.advance(0.001)
        store.touch(GPU, "inflight:p0", 1, [], actor="p0")
        assert move(store, lock, P.STOPPING, Guard.IDLE) is Outcome.GUARD
        store.block(GPU, "budget", None, reason="x", actor="x")  # unwanted, but in use
        assert move(store, lock, P.STOPPING, Guard.IDLE) is Outcome.GUARD
        assert move(store, lock, P.STOPPING, Guard.NO_WORK) is Outcome.GUARD
        clock.advance(1)
        assert move(store, lock, P.STOPPING, Guard.IDLE) is Outcome.OK

    def test_no_work(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.READY)
        move(store, lock, P.FAILED)
        demand(store)  # wanted, but nothing runs
        assert move(store, lock, P.STOPPING, Guard.NO_WORK) is Outcome.GUARD
        clock.advance(4)
        assert move(store, lock, P.STOPPING, Guard.NO_WORK) is Outcome.OK

    def test_adopting_grants_one_idle_timeout(self, store: Store, lock: Lock) -> None:
        assert move(store, lock, P.BOOTING, adopt=True) is Outcome.OK
        assert leases(store) == {"adopted:c0": 60}

    def test_a_start_is_counted_and_forgets_the_last_boot(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.LOADING)
        assert snap(store).node_view.hello
        move(store, lock, P.OFF)
        assert snap(store).start_seq == 1
        assert not snap(store).node_view.hello
        move(store, lock, P.STARTING)
        assert snap(store).start_seq == 2

    def test_a_retry_forgets_the_boot_of_a_bad_instance(self, store: Store, lock: Lock) -> None:
        """Or its old report of a failure would condemn the new boot at once."""
        bring(store, lock, P.READY)
        report(store, "failed", error="CUDA out of memory")
        bad = Failure("service_failed", "CUDA out of memory", 1, 0.0, instance_is_bad=True)
        assert move(store, lock, P.FAILED, failure=bad) is Outcome.OK
        assert snap(store).node_view.state == "failed"
        assert move(store, lock, P.STARTING, failure=bad) is Outcome.OK
        assert not snap(store).node
        assert report(store, "failed", seq=1)[0] == "other_boot"

    def test_ready_gives_who_waited_one_idle_timeout(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.LOADING)
        demand(store, "short", ttl=5)
        demand(store, "long", ttl=500)
        store.pin(GPU, "pin:short", 5, reason="up", actor="x")
        store.pin(GPU, "pin:long", 500, reason="up", actor="x")
        store.pin(GPU, "prewarm:x", 5, reason="cron", actor="x")
        move(store, lock, P.READY)
        assert leases(store) == {
            "request:short": 60,
            "request:long": 60,
            "pin:short": 5,
            "pin:long": 500,
            "prewarm:x": 5,
        }

    def test_a_service_that_comes_back_extends_nothing(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        ready_at = clock()
        demand(store, ttl=60)
        clock.advance(50)
        move(store, lock, P.LOADING)
        move(store, lock, P.READY)
        assert leases(store) == {"request:ada": 10}
        assert snap(store).time("ready_at") == ready_at

    def test_running_work_does_not_outlast_its_instance(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        report(store, active=1)
        move(store, lock, P.OFF)
        assert leases(store) == {"request:ada": 60}

    def test_off_forgets_what_is_over(
        self, store: Store, lock: Lock, client: redis.Redis, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.BOOTING)
        demand(store, ttl=5)
        clock.advance(6)
        demand(store, "bob")
        move(store, lock, P.OFF)
        assert list(client.hkeys(store.keys(GPU)[3])) == ["request:bob"]

    def test_a_call_is_recorded_in_its_phase_only(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.STARTING)
        assert store.record_call(GPU, lock, P.STOPPING, "stop") is Outcome.PHASE
        outcome = store.record_call(
            GPU, lock, P.STARTING, "start", request_id="r-1", error="timed out"
        )
        assert outcome is Outcome.OK
        assert snap(store).time("called_at") == clock()
        assert snap(store).state["call_error"] == "timed out"
        event = store.events(GPU)[-1]
        assert (event.kind, event.fields["request_id"]) == ("call", "r-1")
        move(store, lock, P.BOOTING)
        assert snap(store).time("called_at") is None
        assert "call_error" not in snap(store).state

    def test_an_observation(self, store: Store, lock: Lock) -> None:
        store.record_observation(
            GPU, lock, state="running", instance_id="i-1", address="192.0.2.1", reason="r"
        )
        now = snap(store)
        assert now.address == "192.0.2.1"
        assert now.state["observed"] == "running"
        assert now.time("observed_at") == now.now

    def test_a_look_that_failed_does_not_take_the_node_off_the_air(
        self, store: Store, lock: Lock
    ) -> None:
        store.record_observation(GPU, lock, state="running", instance_id="i-1", address="192.0.2.1")
        store.record_observation(GPU, lock, state="unknown", error="throttled")
        now = snap(store)
        assert (now.address, now.state["instance_id"]) == ("192.0.2.1", "i-1")
        assert now.state["observe_error"] == "throttled"
        store.record_observation(GPU, lock, state="stopped", instance_id="i-1")
        assert snap(store).address == ""

    def test_another_instance_under_the_same_name(self, store: Store, lock: Lock) -> None:
        store.record_observation(
            GPU, lock, state="running", instance_id="i-1", address="192.0.2.1", machine="local"
        )
        assert snap(store).time("machine_since") is None
        # Not even where it cannot be asked does the other's address stay.
        store.record_observation(GPU, lock, state="unknown", error="denied", machine="aws i-2")
        now = snap(store)
        assert (now.state["machine"], now.time("machine_since")) == ("aws i-2", now.now)
        assert (now.state["instance_id"], now.address) == ("", "")
