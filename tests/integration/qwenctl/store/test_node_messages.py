"""Messages of a node in `qwenctl.store` on a real Valkey, under virtual time."""

from __future__ import annotations

import pytest

from qwenctl.core.failures import Failure
from qwenctl.core.phase import Guard, Phase
from qwenctl.core.snapshot import Lock, Outcome, Touch
from qwenctl.lib.version import full_version
from qwenctl.protocol.messages import Hello, Interruption, Progress, Report
from qwenctl.protocol.signing import MAX_SKEW_SECONDS, check_message, sign_message
from qwenctl.store.store import NONCE_SECONDS, Store
from tests.integration.qwenctl.store.store_calls import (
    GPU,
    P,
    bring,
    demand,
    hello,
    kinds,
    leases,
    move,
    nonce,
    report,
    snap,
)
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast


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

    def test_a_message_cannot_be_sent_again_while_it_is_fresh(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        """Signed by a clock that is as far ahead as is allowed, it is fresh for the longest."""
        bring(store, lock, P.BOOTING)
        headers = sign_message("s", "POST", "/x", b"", now=clock() + MAX_SKEW_SECONDS)

        def sent() -> str:
            checked = check_message("s", "POST", "/x", b"", headers, now=clock())
            return store.hello(Hello(gpu=GPU, boot_id="boot-one"), checked)[0]

        assert sent() == "ok"
        for _ in range(8):
            clock.advance(2 * MAX_SKEW_SECONDS / 8 - 0.01)
            assert sent() == "replay"

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

    def test_a_node_that_stops_its_services_reports_no_work(self, store: Store, lock: Lock) -> None:
        bring(store, lock, P.READY)
        report(store, active=1)
        assert leases(store) == {"busy:main": 10}
        report(store, "stopping", active=1)
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


class TestUnneeded:
    """What the node is told, so that it goes off even if no proxy can stop it."""

    def unneeded(self, store: Store, boot: str = "boot-one") -> float:
        return store.unneeded_for(GPU, boot)

    @pytest.mark.parametrize("phase", [P.BOOTING, P.LOADING, P.READY, P.DRAINING])
    def test_it_counts_from_the_first_message_without_demand(
        self, store: Store, lock: Lock, clock: VirtualClock, phase: Phase
    ) -> None:
        bring(store, lock, phase)
        demand(store, ttl=60)
        assert self.unneeded(store) == 0
        clock.advance(61)
        assert self.unneeded(store) == 0
        clock.advance(50)
        assert self.unneeded(store) == 50
        # Demand that comes and goes between two messages counts, too.
        demand(store, ttl=1)
        clock.advance(10)
        assert self.unneeded(store) == 0

    def test_running_work_and_a_block(self, store: Store, lock: Lock, clock: VirtualClock) -> None:
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p", inflight_ttl=30.0)
        store.block(GPU, "maintenance:eve", None, reason="", actor="eve")
        assert self.unneeded(store) == 0
        clock.advance(20)
        assert self.unneeded(store) == 0  # the block waits for the request
        clock.advance(11)
        assert self.unneeded(store) == 0
        clock.advance(40)
        assert self.unneeded(store) == 40  # by the block, in spite of the lease

    def test_a_stop_that_has_begun_is_wanted_whatever_comes(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.STOPPING)
        assert self.unneeded(store) == 0
        clock.advance(30)
        demand(store)
        assert self.unneeded(store) == 30

    def test_another_boot_is_not_told_to_go(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        assert self.unneeded(store) == 0
        clock.advance(100)
        assert self.unneeded(store, "boot-two") == 0
        assert self.unneeded(store) == 100
        demand(store)
        assert move(store, lock, P.STOPPING) is Outcome.OK
        assert move(store, lock, P.OFF) is Outcome.OK
        assert move(store, lock, P.STARTING) is Outcome.OK
        assert hello(store, "boot-two")[0] == "ok"
        assert self.unneeded(store, "boot-two") == 0

    def test_a_bad_instance_is_unneeded_under_demand(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        demand(store, ttl=1000)
        bad = Failure("service_failed", "it cannot run", 1, 0.0, instance_is_bad=True)
        assert move(store, lock, P.FAILED, failure=bad) is Outcome.OK
        assert self.unneeded(store) == 0
        clock.advance(25)
        assert self.unneeded(store) == 25

    def test_a_bad_instance_is_needed_while_work_runs_on_it(
        self, store: Store, lock: Lock, clock: VirtualClock
    ) -> None:
        bring(store, lock, P.READY)
        demand(store, ttl=1000, inflight="inflight:p", inflight_ttl=30.0)
        bad = Failure("service_failed", "it cannot run", 1, 0.0, instance_is_bad=True)
        assert move(store, lock, P.FAILED, failure=bad) is Outcome.OK
        assert self.unneeded(store) == 0
        clock.advance(25)
        assert self.unneeded(store) == 0
        clock.advance(10)
        assert self.unneeded(store) == 0
        clock.advance(20)
        assert self.unneeded(store) == 20


def test_a_refused_agent_is_noted_until_its_hello_counts(store: Store, lock: Lock) -> None:
    bring(store, lock, P.STARTING)
    store.refused_agent(GPU, "malformed", "10.0.0.7", "state: \x1b[31m")
    state = snap(store).state
    assert (state["refused_code"], state["refused_peer"]) == ("malformed", "10.0.0.7")
    assert "\x1b" not in state["refused_why"]
    verdict, _ = store.hello(Hello(gpu=GPU, boot_id="b" * 8, not_understood="x"), nonce())
    assert verdict == "ok"
    assert "refused_at" not in snap(store).state
    assert snap(store).node["not_understood"] == "x"
    assert snap(store).node["proxy_version"] == full_version()
