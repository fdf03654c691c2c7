"""`qwenctl.store.store` and its Lua scripts on a real Valkey, under virtual time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from qwenctl.config.deployment import Config
from qwenctl.core.events import EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Guard, Move, Phase
from qwenctl.core.snapshot import Lock, Outcome, Snapshot, Touch
from qwenctl.errors import StoreUnavailable
from qwenctl.protocol.messages import Hello, Interruption, Progress, Report
from qwenctl.store.connect import connect
from qwenctl.store.store import NONCE_SECONDS, Store
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock

GPU = "main"
P = Phase


@pytest.fixture
def lock(store: Store) -> Lock:
    """The controller lock, held for an hour."""
    lock, _, _ = store.acquire(GPU, "c0", 3600.0)
    assert lock
    return lock


def snap(store: Store) -> Snapshot:
    return store.snapshot(GPU)


def move(store: Store, lock: Lock, to: Phase, guard: Guard = Guard.NONE, **fields: Any) -> Outcome:
    """A transition from the present phase, with a drain time of 4 s."""
    step = Move(to, fields.pop("cause", "test"), guard, **fields)
    return store.transition(GPU, lock, snap(store).phase, step, drain=4.0, idle_timeout=60.0)


PATHS = {
    P.OFF: (),
    P.STARTING: (P.STARTING,),
    P.BOOTING: (P.STARTING, P.BOOTING),
    P.LOADING: (P.STARTING, P.BOOTING, P.LOADING),
    P.READY: (P.STARTING, P.BOOTING, P.LOADING, P.READY),
    P.DRAINING: (P.STARTING, P.BOOTING, P.LOADING, P.READY, P.DRAINING),
    P.STOPPING: (P.STARTING, P.BOOTING, P.STOPPING),
    P.FAILED: (P.FAILED,),
}


def bring(store: Store, lock: Lock, phase: Phase) -> None:
    """Move from off to that phase, the node reporting what it would."""
    for step in PATHS[phase]:
        assert move(store, lock, step) is Outcome.OK
        if step is P.BOOTING:
            assert hello(store)[0] == "ok"
        if step is P.LOADING:
            assert report(store)[0] == "ok"
    assert snap(store).phase is phase


_nonces = iter(range(10**9))


def nonce() -> str:
    return f"nonce-{next(_nonces):012d}"


def hello(store: Store, boot: str = "boot-one", **fields: Any) -> tuple[str, int]:
    return store.hello(Hello(gpu=GPU, boot_id=boot, agent_version="1"), nonce(), **fields)


def report(
    store: Store, state: Any = "ready", *, boot: str = "boot-one", seq: int = 1, **fields: Any
) -> tuple[str, int]:
    message = Report(gpu=GPU, boot_id=boot, start_seq=seq, state=state, **fields)
    return store.report(message, nonce(), heartbeat=5.0)[:2]


def demand(store: Store, client: str = "ada", ttl: float = 60.0, **fields: Any) -> Any:
    return store.demand(GPU, f"request:{client}", ttl, reason="request", actor=client, **fields)


def leases(store: Store) -> dict[str, float]:
    """Name → seconds left."""
    now = snap(store)
    return {lease.name: round(lease.expiry - now.now, 3) for lease in now.leases}


def kinds(store: Store) -> list[str]:
    return [event.kind for event in store.events(GPU)]


class TestTime:
    def test_a_lease_ends_by_comparison(self, store: Store, clock: VirtualClock) -> None:
        demand(store, ttl=10)
        clock.advance(9.999)
        assert leases(store) == {"request:ada": 0.001}
        assert snap(store).wanted
        clock.advance(0.001)
        assert leases(store) == {}
        assert not snap(store).wanted

    def test_no_key_has_a_ttl(self, store: Store, lock: Lock, client: redis.Redis) -> None:
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        store.pin(GPU, "pin:ada", 10, reason="up", actor="ada")
        report(store, active=1, log=("line",))
        store.block(GPU, "maintenance:ada", 10, reason="x", actor="ada")
        keys = [key for key in store.keys(GPU) if client.exists(key)]
        assert len(keys) == 9
        assert [client.ttl(key) for key in keys] == [-1] * 9

    def test_the_servers_clock_without_another(self, client: redis.Redis, deployment: str) -> None:
        store = Store(client, deployment)
        seconds, micros = client.time()
        assert abs(snap(store).now - (seconds + micros / 1e6)) < 1.0
        demand(store, ttl=0.05)
        assert snap(store).wanted
        time.sleep(0.06)
        assert not snap(store).wanted

    def test_next_expiry(self, store: Store, clock: VirtualClock) -> None:
        assert snap(store).next_expiry is None
        demand(store, "ada", ttl=20)
        store.block(GPU, "budget", None, reason="x", actor="x")
        assert snap(store).next_expiry == clock() + 20
        store.block(GPU, "off-hours:x", 5, reason="x", actor="x")
        assert snap(store).next_expiry == clock() + 5


class TestLeases:
    def test_extend_and_never_shorten(self, store: Store) -> None:
        demand(store, ttl=60)
        demand(store, ttl=10)
        assert leases(store) == {"request:ada": 60}
        demand(store, ttl=90)
        assert leases(store) == {"request:ada": 90}

    def test_who_and_why_is_kept_from_the_first_grant(
        self, store: Store, clock: VirtualClock
    ) -> None:
        demand(store, ttl=60)
        began = clock()
        clock.advance(5)
        store.demand(GPU, "request:ada", 60, reason="other", actor="other")
        (lease,) = snap(store).leases
        assert (lease.reason, lease.actor, lease.since) == ("request", "ada", began)
        assert lease.kind == "request"
        assert not lease.is_work
        assert kinds(store) == ["lease"]
        clock.advance(61)
        store.demand(GPU, "request:ada", 60, reason="other", actor="other")
        (lease,) = snap(store).leases
        assert (lease.reason, lease.since) == ("other", clock())

    def test_a_pin_is_exact(self, store: Store) -> None:
        for seconds in (7200, 60):
            admission = store.pin(GPU, "pin:ada", seconds, reason="up --for", actor="ada")
            assert admission.blocked_by == ""
            assert leases(store) == {"pin:ada": seconds}
        store.pin(GPU, "pin:ada", 30, reason="up", actor="ada", exact=False)
        assert leases(store) == {"pin:ada": 60}

    def test_gpus_and_deployments_are_apart(self, store: Store, client: redis.Redis) -> None:
        demand(store)
        assert not store.snapshot("other").leases
        assert not Store(client, "elsewhere", now=lambda: 0.0).snapshot(GPU).leases


class TestDemand:
    @pytest.mark.parametrize("phase", list(Phase))
    def test_what_it_does_in_each_phase(self, store: Store, lock: Lock, phase: Phase) -> None:
        bring(store, lock, phase)
        admission = demand(store, inflight="inflight:p0")
        rescued = phase is P.DRAINING
        assert admission.phase is (P.READY if rescued else phase)
        assert admission.start_seq == snap(store).start_seq
        assert snap(store).phase is admission.phase
        serves = phase in (P.READY, P.DRAINING)
        expected = {"request:ada": 60.0, **({"inflight:p0": 30.0} if serves else {})}
        assert leases(store) == expected

    @pytest.mark.parametrize("phase", list(Phase))
    def test_who_may_not_wake(self, store: Store, lock: Lock, phase: Phase) -> None:
        bring(store, lock, phase)
        demand(store, may_wake=False)
        assert bool(leases(store)) == (phase in (P.READY, P.DRAINING))

    def test_a_rescue_is_in_the_history(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.DRAINING)
        clock.advance(2)
        demand(store)
        (event,) = [e for e in store.events(GPU) if e.fields.get("cause") == "demand"]
        assert (event.fields["from"], event.fields["to"]) == ("draining", "ready")
        assert event.fields["actor"] == "ada"
        assert event.fields["epoch"] == "1"
        assert event.time == clock() == snap(store).since

    def test_no_rescue_of_what_is_not_ready(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.LOADING)
        report(store, "loading")
        assert move(store, lock, P.DRAINING) is Outcome.OK
        assert demand(store, inflight="inflight:p0").phase is P.DRAINING
        assert leases(store) == {"request:ada": 60}

    def test_nothing_is_leased_under_a_block(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.DRAINING)
        store.block(GPU, "maintenance:bob", 60, reason="update", actor="bob")
        assert demand(store).blocked_by == "maintenance:bob"
        assert (
            store.pin(GPU, "pin:ada", 9, reason="up", actor="ada").blocked_by == "maintenance:bob"
        )
        assert leases(store) == {}
        assert snap(store).phase is P.DRAINING

    def test_a_request_that_down_gave_up_does_not_wake(
        self, store: Store, clock: VirtualClock
    ) -> None:
        store.release(GPU, actor="bob")
        clock.advance(5)
        assert demand(store, began_ago=5.1).released
        assert leases(store) == {}
        assert not demand(store, began_ago=4.9).released
        assert leases(store) == {"request:ada": 60}


class TestTouch:
    def test_in_flight_is_renewed_and_given_up(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        touch = Touch("request:ada", 60, 1.0)
        assert store.touch(GPU, "inflight:p0", 30, [touch], actor="p0") is P.READY
        assert leases(store) == {"inflight:p0": 30, "request:ada": 60}
        assert snap(store).working
        store.touch(GPU, "inflight:p0", 0, [], actor="p0")
        assert leases(store) == {"request:ada": 60}
        assert not snap(store).working

    @pytest.mark.parametrize("phase", list(Phase))
    def test_work_counts_only_while_the_node_may_be_up(
        self, store: Store, lock: Lock, phase: Phase
    ) -> None:
        bring(store, lock, phase)
        store.touch(GPU, "inflight:p0", 30, [], actor="p0")
        assert snap(store).working == (phase not in (P.OFF, P.STARTING, P.STOPPING))

    @pytest.mark.parametrize("phase", list(Phase))
    def test_the_end_of_a_request_starts_nothing_anew(
        self, store: Store, lock: Lock, phase: Phase
    ) -> None:
        """What is off, or on its way there, is woken by `demand` only."""
        bring(store, lock, phase)
        store.touch(GPU, "inflight:p0", 0, [Touch("request:eve", 60, 1.0)], actor="p0")
        assert snap(store).wanted == (phase not in (P.OFF, P.STOPPING))

    @pytest.mark.parametrize("phase", [P.OFF, P.STOPPING])
    def test_who_needs_it_again_keeps_that(
        self, store: Store, lock: Lock, clock: VirtualClock, phase: Phase
    ) -> None:
        bring(store, lock, phase)
        demand(store, "ada", 60)
        clock.advance(10)
        store.touch(GPU, "inflight:p0", 0, [Touch("request:ada", 60, 1.0)], actor="p0")
        assert leases(store) == {"request:ada": 60}

    def test_a_request_that_began_before_down_extends_nothing(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        clock.advance(10)
        store.release(GPU, actor="ada")
        clock.advance(5)
        store.touch(GPU, "inflight:p0", 0, [Touch("request:old", 60, 5.1)], actor="p0")
        assert leases(store) == {}
        store.touch(GPU, "inflight:p0", 0, [Touch("request:new", 60, 4.9)], actor="p0")
        assert leases(store) == {"request:new": 60}


class TestDown:
    def test_drops_all_but_running_work(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        store.pin(GPU, "pin:ada", 60, reason="up", actor="ada")
        report(store, active=2)
        assert store.release(GPU, actor="ada", reason="down") == 2
        assert leases(store) == {"inflight:p0": 30, "busy:main": 10}
        assert "cut" not in snap(store).state
        event = store.events(GPU)[-1]
        assert (event.kind, event.fields["actor"], event.fields["dropped"]) == ("down", "ada", "2")

    def test_now_cuts(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        assert store.release(GPU, actor="ada", cut=True) == 2
        assert snap(store).state["cut"] == "ada"
        store.touch(GPU, "inflight:p0", 30, [], actor="p0")  # a proxy does not know yet
        demand(store, "late")
        assert move(store, lock, P.STOPPING, cause="down_now") is Outcome.OK
        assert leases(store) == {"request:late": 60}  # what came after is not lost
        assert "cut" not in snap(store).state

    @pytest.mark.parametrize("phase", [P.OFF, P.STOPPING])
    def test_nothing_to_cut(self, store: Store, lock: Lock, phase: Phase) -> None:
        bring(store, lock, phase)
        store.release(GPU, actor="ada", cut=True)
        assert "cut" not in snap(store).state

    def test_only_one_lease(self, store: Store) -> None:
        demand(store, "ada")
        demand(store, "bob")
        assert store.release(GPU, actor="ada", only="request:ada") == 1
        assert leases(store) == {"request:bob": 60}
        assert snap(store).released_at == 0


class TestBlocks:
    def test_block_and_unblock(self, store: Store, clock: VirtualClock) -> None:
        demand(store)
        assert store.block(GPU, "maintenance:ada", 60, reason="update", actor="ada") is P.OFF
        store.block(GPU, "budget", None, reason="spent", actor="policy")
        now = snap(store)
        assert not now.wanted
        assert now.leases
        assert {block.name: (block.expiry, block.reason) for block in now.blocks} == {
            "maintenance:ada": (clock() + 60, "update"),
            "budget": (float("inf"), "spent"),
        }
        clock.advance(59)
        assert store.unblock(GPU, "budget", actor="bob") == ["budget"]
        assert not snap(store).wanted
        assert store.unblock(GPU, "budget", actor="bob") == []
        clock.advance(0.5)
        assert store.unblock(GPU, actor="bob") == ["maintenance:ada"]
        assert snap(store).wanted
        assert kinds(store) == ["lease", "block", "block", "unblock", "unblock"]

    def test_a_block_ends_by_itself(self, store: Store, clock: VirtualClock) -> None:
        store.block(GPU, "maintenance:ada", 60, reason="x", actor="ada")
        clock.advance(60)
        assert demand(store).blocked_by == ""
        assert snap(store).blocks == ()

    def test_now_cuts(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        store.block(GPU, "maintenance:ada", 60, reason="x", actor="ada", cut=True)
        assert snap(store).state["cut"] == "ada"


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


class TestNode:
    @pytest.mark.parametrize(
        ("phase", "verdict"),
        [
            (P.OFF, "unexpected"),
            (P.STARTING, "ok"),
            (P.BOOTING, "unexpected"),  # another one is there
            (P.LOADING, "unexpected"),
            (P.READY, "unexpected"),
            (P.DRAINING, "unexpected"),
            (P.STOPPING, "unexpected"),
            (P.FAILED, "ok"),
        ],
    )
    def test_hello(self, store: Store, lock: Lock, phase: Phase, verdict: str) -> None:
        bring(store, lock, phase)
        seq = snap(store).start_seq
        assert hello(store, "boot-two") == (verdict, seq)
        assert (snap(store).node.get("boot_id") == "boot-two") == (verdict == "ok")
        # Where it does not fit, the controller is to look.
        looks = snap(store).time("look_at") is not None
        assert looks == (verdict == "unexpected" or phase is P.STARTING)

    @pytest.mark.parametrize("phase", [P.BOOTING, P.LOADING, P.READY, P.DRAINING])
    @pytest.mark.parametrize(("heartbeat", "silence"), [(0.5, 10.0), (5.0, 10.0), (20.0, 40.0)])
    def test_a_second_instance_does_not_push_out_the_one_that_is_there(
        self,
        store: Store,
        lock: Lock,
        clock: VirtualClock,
        phase: Phase,
        heartbeat: float,
        silence: float,
    ) -> None:
        bring(store, lock, phase)
        assert hello(store, "boot-one")[0] == "ok"  # its own agent may start anew
        report(store)
        clock.advance(silence - 0.001)
        assert hello(store, "boot-two", heartbeat=heartbeat)[0] == "unexpected"
        assert snap(store).node_view.state == "ready"
        clock.advance(0.001)  # it has fallen silent: the instance may have been rebooted
        assert hello(store, "boot-two", heartbeat=heartbeat)[0] == "ok"

    def test_a_second_instance_that_was_there_before_the_start_is_pushed_out(
        self, store: Store, lock: Lock
    ) -> None:
        """An old clone that runs all the time says hello before the instance that was started."""
        assert hello(store, "boot-old")[0] == "unexpected"
        bring(store, lock, P.STARTING)
        assert hello(store, "boot-old")[0] == "ok"  # it may have been started by somebody else
        move(store, lock, P.BOOTING)
        assert hello(store, "boot-one")[0] == "ok"
        assert hello(store, "boot-old")[0] == "unexpected"
        assert snap(store).node["boot_id"] == "boot-one"

    def test_an_instance_found_running_is_not_pushed_out(self, store: Store, lock: Lock) -> None:
        assert hello(store, "boot-one")[0] == "unexpected"
        move(store, lock, P.BOOTING, cause="found_running")
        assert hello(store, "boot-one")[0] == "ok"
        assert hello(store, "boot-two")[0] == "unexpected"

    def test_a_boot_that_is_over(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.BOOTING)
        move(store, lock, P.STOPPING)
        move(store, lock, P.OFF)
        move(store, lock, P.STARTING)
        assert hello(store, "boot-one") == ("earlier_boot", 2)
        assert hello(store, "boot-two") == ("ok", 2)

    def test_a_boot_that_only_seemed_to_be_over(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.BOOTING)
        move(store, lock, P.OFF, cause="stopped_outside")
        move(store, lock, P.BOOTING, cause="found_running")
        assert hello(store, "boot-one") == ("ok", 1)

    def test_an_agent_that_starts_anew_has_to_say_what_runs(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        assert snap(store).node_view.state == "ready"
        hello(store)
        assert snap(store).node_view.state == ""

    def test_a_replay(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.BOOTING)
        message = Hello(gpu=GPU, boot_id="boot-one")
        once = nonce()
        assert store.hello(message, once)[0] == "ok"
        clock.advance(NONCE_SECONDS - 0.001)
        assert store.hello(message, once) == ("replay", 1)
        heartbeat = Report(gpu=GPU, boot_id="boot-one", start_seq=1, state="loading")
        assert store.report(heartbeat, once, heartbeat=5) == ("replay", 1, ())
        clock.advance(0.001)
        assert store.hello(message, once)[0] == "ok"

    def test_a_report_counts_for_its_boot(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.BOOTING)
        assert report(store, boot="boot-two") == ("other_boot", 1)
        assert report(store, seq=7) == ("other_boot", 1)
        assert snap(store).node_view.state == ""
        assert report(store, "loading") == ("ok", 1)
        assert snap(store).node_view.state == "loading"
        move(store, lock, P.OFF)
        assert report(store) == ("other_boot", 1)

    def test_a_refused_report_may_be_sent_again_after_hello(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.STARTING)
        message = Report(gpu=GPU, boot_id="boot-one", start_seq=1, state="loading")
        again = nonce()
        assert store.report(message, again, heartbeat=5)[0] == "other_boot"
        hello(store)
        assert store.report(message, again, heartbeat=5)[0] == "ok"

    def test_busy(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.READY)
        report(store, active=1)
        assert leases(store) == {"busy:main": 10}
        clock.advance(5)
        report(store, active=1)
        assert leases(store) == {"busy:main": 10}
        report(store, active=0)
        assert leases(store) == {}

    def test_what_is_kept(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.LOADING)
        progress = Progress(phase="weights", percent=40, text="half of it")
        report(store, "failed", error="CUDA", progress=progress, log=("a", "b"))
        clock.advance(7)
        now = snap(store)
        assert now.report is not None
        assert now.report.progress == progress
        assert now.report.log == ()
        assert now.node_view.heartbeat_age == 7
        assert (now.node_view.state, now.node_view.error) == ("failed", "CUDA")
        assert store.log_lines(GPU) == ["a", "b"]

    def test_events_only_at_a_change(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.LOADING)
        before = kinds(store).count("node")
        for _ in range(3):
            report(store, "loading", progress=Progress(phase="weights"))
        assert kinds(store).count("node") == before + 1
        hello(store)
        assert kinds(store).count("hello") == 1

    def test_the_log_is_trimmed(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.LOADING)
        for start in range(0, 2400, 200):
            report(store, log=tuple(str(n) for n in range(start, start + 200)))
        lines = store.log_lines(GPU, 10_000)
        assert (len(lines), lines[0], lines[-1]) == (2000, "400", "2399")
        assert store.log_lines(GPU, 2) == ["2398", "2399"]

    def test_an_interruption_lasts_as_long_as_the_boot(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        assert not snap(store).node_view.interrupted
        notice = Interruption(action="stop", seconds_left=120.0)
        report(store, interruption=notice)
        clock.advance(5)
        # The same again, and then an agent that has just started and knows nothing yet.
        report(store, interruption=notice)
        assert hello(store)[0] == "ok"
        report(store)
        now = snap(store)
        assert now.node_view.interrupted
        assert now.interrupted_at == now.now - 5
        assert now.interruption_ends == now.now + 115
        [told] = [event for event in store.events(GPU) if event.kind == "interruption"]
        assert told.fields["action"] == "stop"
        assert float(told.fields["ends"]) / 1000 == now.interruption_ends
        clock.advance(10.0)
        assert hello(store, "boot-two")[0] == "ok"
        assert not snap(store).node_view.interrupted

    def test_demand_does_not_keep_what_the_cloud_takes_back(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        report(store, interruption=Interruption(seconds_left=120.0), log=("last words",))
        assert move(store, lock, P.DRAINING) is Outcome.OK
        admission = demand(store, inflight="inflight:p")
        assert admission.phase is P.DRAINING
        assert set(leases(store)) == {"request:ada"}  # for the next start; nothing is in flight
        assert store.log_lines(GPU) == ["last words"]

    @pytest.mark.parametrize("phase", [P.READY, P.DRAINING])
    def test_who_may_not_wake_does_not_ask_for_the_next_start(
        self, store: Store, lock: Lock, phase: Phase
    ) -> None:
        """Of an instance that the cloud takes back."""
        bring(store, lock, phase)
        report(store, interruption=Interruption(seconds_left=120.0))
        assert demand(store, may_wake=False).phase is phase
        assert leases(store) == {}

    def test_use_of_what_the_cloud_takes_back_extends_what_was_asked_for_only(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        demand(store, "ada", 60)
        report(store, interruption=Interruption(seconds_left=120.0))
        move(store, lock, P.DRAINING)
        clock.advance(10)
        touches = [Touch("request:ada", 60, 1.0), Touch("request:bob", 60, 1.0)]
        assert store.touch(GPU, "inflight:p0", 30, touches, actor="p0") is P.DRAINING
        assert leases(store) == {"inflight:p0": 30, "request:ada": 60}
        clock.advance(4)
        assert move(store, lock, P.STOPPING, Guard.NO_WORK) is Outcome.GUARD  # it runs


class TestEvents:
    def test_note_and_look(self, store: Store, clock: VirtualClock) -> None:
        store.note(GPU, EventKind.FIRST_BYTE, actor="p0", start_seq="3")
        (event,) = store.events(GPU)
        assert (event.kind, event.fields) == ("first-byte", {"actor": "p0", "start_seq": "3"})
        store.look(GPU, actor="p0", cause="no connection")
        assert snap(store).time("look_at") == clock()

    def test_pages(self, store: Store) -> None:
        for number in range(5):
            store.note(GPU, EventKind.FIRST_BYTE, actor=f"p{number}")
        assert [e.actor for e in store.events(GPU, 2)] == ["p3", "p4"]
        first = store.events(GPU)[0].id
        assert [e.actor for e in store.events(GPU, 2, after=first)] == ["p1", "p2"]

    def test_follow(self, store: Store, client: redis.Redis) -> None:
        store.note(GPU, EventKind.HELLO, actor="x")
        last = store.events(GPU)[-1].id
        assert store.follow(GPU, last, 0.02) == []
        timer = threading.Timer(0.1, store.note, (GPU, EventKind.FIRST_BYTE), {"actor": "x"})
        timer.start()
        began = time.monotonic()
        assert [event.kind for event in store.follow(GPU, last, 3.0)] == ["first-byte"]
        assert time.monotonic() - began < 1.0
        timer.join()

    def test_the_history_is_bounded(self, store: Store, client: redis.Redis) -> None:
        pipeline = client.pipeline(transaction=False)
        for number in range(6000):
            pipeline.xadd(store.keys(GPU)[7], {"kind": str(number)})
        pipeline.execute()
        store.note(GPU, EventKind.FIRST_BYTE, actor="x")
        assert 5000 <= len(store.events(GPU, 100_000)) < 5200
        assert store.events(GPU)[-1].kind is EventKind.FIRST_BYTE


class TestWatch:
    @pytest.fixture
    def changes(self, store: Store) -> Iterator[queue.Queue[tuple[str, str]]]:
        changes: queue.Queue[tuple[str, str]] = queue.Queue()
        watcher = store.watch([GPU], lambda gpu, what: changes.put((gpu, what)))
        assert changes.get(timeout=5) == (GPU, "resync")
        yield changes
        watcher.stop()

    def test_news_travel_fast(
        self, store: Store, lock: Lock, changes: queue.Queue[tuple[str, str]]
    ) -> None:
        delays = []
        for client in range(20):
            began = time.monotonic()
            demand(store, str(client))
            assert changes.get(timeout=5) == (GPU, "lease")
            delays.append(time.monotonic() - began)
        assert sorted(delays)[10] < 0.05

    def test_what_changes(
        self, store: Store, lock: Lock, changes: queue.Queue[tuple[str, str]]
    ) -> None:
        move(store, lock, P.STARTING)
        store.record_call(GPU, lock, P.STARTING, "start")
        store.record_observation(GPU, lock, state="running")
        store.record_observation(GPU, lock, state="running")  # nothing new
        hello(store)
        report(store, "loading")
        report(store, "loading")  # nothing new
        store.block(GPU, "budget", None, reason="x", actor="x")
        store.unblock(GPU, actor="x")
        store.look(GPU, actor="x", cause="x")
        store.release_lock(GPU, lock)
        seen = [changes.get(timeout=5)[1] for _ in range(9)]
        assert seen == [
            "phase",
            "call",
            "observation",
            "hello",
            "report",
            "block",
            "block",
            "look",
            "lock",
        ]
        assert changes.empty()


def test_a_connection_that_breaks_is_taken_up_again() -> None:
    with ValkeyServer() as server:
        store = Store(server.client(), "x")
        changes: queue.Queue[str] = queue.Queue()
        watcher = store.watch([GPU], lambda _, what: changes.put(what))
        assert changes.get(timeout=5) == "resync"
        server.kill()
        with pytest.raises(StoreUnavailable, match=str(server.socket)):
            demand(store)
        server.start()
        assert changes.get(timeout=10) == "resync"
        demand(store)
        assert changes.get(timeout=5) == "lease"
        watcher.stop()


def test_scripts_survive_a_server_that_forgot_them(store: Store, client: redis.Redis) -> None:
    demand(store)
    client.script_flush()
    assert leases(store) == {"request:ada": 60}


@pytest.mark.slow
def test_a_cluster() -> None:
    """Everything of one GPU lies in one slot."""
    port = free_port()  # the cluster bus takes the port 10,000 above
    with ValkeyServer(port=port, cluster_enabled="yes") as server:
        plain = server.client()
        cast(Any, plain).execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 10
        while plain.cluster("info")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        clock = VirtualClock()
        client = connect(Config(redis_url=f"redis+cluster://127.0.0.1:{port}"))
        store = Store(client, "default", now=clock)
        slots = {plain.cluster("keyslot", key) for key in store.keys(GPU)}
        assert len(slots) == 1
        assert slots != {plain.cluster("keyslot", store.keys("other")[0])}
        store.ping()
        lock, _, _ = store.acquire(GPU, "c0", 3600)
        assert lock
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        report(store, active=1, log=("line",))
        assert set(leases(store)) == {"request:ada", "inflight:p0", "busy:main"}
        assert store.log_lines(GPU) == ["line"]
        assert store.events(GPU)
        assert store.follow(GPU, "", 0.1)
        changes: queue.Queue[str] = queue.Queue()
        watcher = store.watch([GPU], lambda _, what: changes.put(what))
        assert changes.get(timeout=5) == "resync"
        demand(store, "bob")
        assert changes.get(timeout=5) == "lease"
        watcher.stop()
        store.close()
