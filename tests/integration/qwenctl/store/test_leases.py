"""Leases and blocks in `qwenctl.store` on a real Valkey, under virtual time."""

from __future__ import annotations

import time

import pytest
import redis

from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Lock, Outcome, Touch
from qwenctl.core.words import lease_words
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import (
    GPU,
    P,
    bring,
    demand,
    kinds,
    leases,
    move,
    report,
    snap,
)
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast


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
        words = {lease.kind: lease_words(lease) for lease in snap(store).leases}
        assert words["request"] == "a visitor (ada)"  # not the proxy that writes it
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


class TestOutlived:
    """A request that has outlived its instance counts for nothing on the next."""

    def touch(self, store: Store, ago: float, ttl: float = 30.0) -> None:
        touches = [Touch("request:eve", 60, ago)]
        store.touch(GPU, "inflight:p0", ttl, touches, actor="p0", moved_ago=ago)

    def restart(self, store: Store, lock: Lock, clock: VirtualClock, first: Phase) -> None:
        bring(store, lock, P.READY)
        clock.advance(100)
        lost = Failure("instance_lost", "gone", 1, clock(), instance_is_bad=False)
        if first is P.OFF:
            assert move(store, lock, P.OFF) is Outcome.OK
            assert move(store, lock, P.BOOTING) is Outcome.OK
        else:
            assert move(store, lock, P.FAILED, failure=lost) is Outcome.OK
            assert move(store, lock, P.STARTING) is Outcome.OK
            assert move(store, lock, P.BOOTING) is Outcome.OK
        clock.advance(50)

    @pytest.mark.parametrize("first", [P.OFF, P.FAILED])
    def test_it_neither_runs_nor_ends_there(
        self, store: Store, lock: Lock, clock: VirtualClock, first: Phase
    ) -> None:
        self.restart(store, lock, clock, first)
        self.touch(store, 60)
        assert leases(store) == {}
        self.touch(store, 60, ttl=0)
        assert leases(store) == {}
        self.touch(store, 49)
        assert leases(store) == {"inflight:p0": 30, "request:eve": 60}
        self.touch(store, 60)  # the other has ended; this was there all the time
        assert leases(store) == {"request:eve": 60}

    def test_a_byte_since_the_start_shows_that_it_is_the_same_instance(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        self.restart(store, lock, clock, P.OFF)
        store.touch(GPU, "inflight:p0", 30, [], actor="p0", moved_ago=1.0)
        assert leases(store) == {"inflight:p0": 30}

    @pytest.mark.parametrize("bad", [False, True])
    def test_work_ends_with_an_instance_that_is_gone(
        self, store: Store, lock: Lock, clock: VirtualClock, bad: bool
    ) -> None:
        bring(store, lock, P.READY)
        self.touch(store, 1.0)
        report(store, active=1)
        failure = Failure("agent_lost", "silent", 1, clock(), instance_is_bad=bad)
        assert move(store, lock, P.FAILED, failure=failure) is Outcome.OK
        assert snap(store).working == bad
        self.touch(store, 1.0)
        assert snap(store).working == bad

    def test_no_work_passes_into_the_next_start(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        report(store, active=1)
        bad = Failure("agent_lost", "silent", 1, clock(), instance_is_bad=True)
        assert move(store, lock, P.FAILED, failure=bad) is Outcome.OK
        assert move(store, lock, P.STARTING) is Outcome.OK
        assert not snap(store).working


class TestUnanswered:
    def touch(self, store: Store, name: str, unanswered: float) -> None:
        store.touch(GPU, name, 30, [], actor="p", unanswered=unanswered)

    def test_work_is_vouched_for_by_who_heard_last(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        assert snap(store).unanswered == 0.0
        self.touch(store, "inflight:p0", 200.0)
        assert snap(store).unanswered == 200.0
        clock.advance(2)
        assert snap(store).unanswered == 202.0
        self.touch(store, "inflight:p1", 7.0)
        assert snap(store).unanswered == 7.0
        since = next(lease.since for lease in snap(store).leases if lease.name == "inflight:p0")
        assert since == clock() - 2

    def test_a_node_that_reports_work_vouches_for_it(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        self.touch(store, "inflight:p0", 200.0)
        report(store, active=1)
        assert snap(store).unanswered == 0.0

    def test_a_lease_of_an_older_proxy_vouches_for_itself(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        self.touch(store, "inflight:p0", 200.0)
        demand(store, inflight="inflight:old")
        assert snap(store).unanswered == 0.0


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
        assert store.release(GPU, actor="ada", force_stop=True) == 2
        assert snap(store).state["cut"] == "ada"
        store.touch(GPU, "inflight:p0", 30, [], actor="p0")  # a proxy does not know yet
        demand(store, "late")
        assert move(store, lock, P.STOPPING, cause="down_now") is Outcome.OK
        assert leases(store) == {"request:late": 60}  # what came after is not lost
        assert snap(store).state["cut"] == "ada"  # a successor need not drain
        assert move(store, lock, P.OFF) is Outcome.OK
        assert "cut" not in snap(store).state

    @pytest.mark.parametrize("to", [P.DRAINING, P.FAILED])
    def test_a_cut_outlives_a_stop_that_begins_anew(
        self, store: Store, lock: Lock, to: Phase
    ) -> None:
        """It comes after the controller has decided, and before it moves."""
        bring(store, lock, P.STOPPING)
        store.release(GPU, actor="ada", force_stop=True)
        assert move(store, lock, to, cause="stop_unfinished") is Outcome.OK
        assert snap(store).state["cut"] == "ada"

    def test_a_request_takes_no_cut_back(self, store: Store, lock: Lock) -> None:
        """It comes before the controller has seen the cut, as while that asks the cloud."""
        bring(store, lock, P.DRAINING)
        report(store, active=1)
        assert snap(store).node_view.state == "ready"
        store.release(GPU, actor="ada", force_stop=True)
        demand(store, "late")
        assert snap(store).phase is P.DRAINING
        assert snap(store).state["cut"] == "ada"
        assert leases(store) == {"request:late": 60}  # it starts again for it

    @pytest.mark.parametrize("to", [P.FAILED, P.OFF])
    def test_a_cut_ends_with_its_stop(self, store: Store, lock: Lock, to: Phase) -> None:
        bring(store, lock, P.STOPPING)
        store.release(GPU, actor="ada", force_stop=True)
        assert move(store, lock, to) is Outcome.OK
        assert "cut" not in snap(store).state

    def test_nothing_to_cut(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.OFF)
        store.release(GPU, actor="ada", force_stop=True)
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
        store.block(GPU, "maintenance:ada", 60, reason="x", actor="ada", force_stop=True)
        assert snap(store).state["cut"] == "ada"
