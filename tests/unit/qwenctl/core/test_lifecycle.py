"""The table of `core.lifecycle.decide`, how often it looks, and how long it backs off."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenctl.core.failures import SPOT_INTERRUPTION, Failure
from qwenctl.core.lifecycle import (
    Call,
    Move,
    NodeView,
    Observe,
    Timings,
    View,
    Wait,
    backoff,
    decide,
)
from qwenctl.core.phase import TRANSITIONS, Guard, Observed, Phase

NOW = 10_000.0
T = Timings()


def seen(phase: Phase, observed: Observed, **fields: Any) -> View:
    """A view with a fresh observation, five seconds into the phase."""
    return View(
        **{
            "phase": phase,
            "since": NOW - 5,
            "wanted": True,
            "working": False,
            "blocked": False,
            "force_stop": False,
            "observed": observed,
            "observed_at": NOW,
            **fields,
        }
    )


BAD = Failure("agent_silent", "why", 2, NOW + 20, instance_is_bad=True)
UNLUCKY = Failure("no_capacity", "why", 2, NOW + 20, instance_is_bad=False)
DUE = dataclasses.replace(UNLUCKY, retry_at=NOW - 1)
SILENT = NodeView(hello=True, heartbeat_age=21)
HELLO, READY = NodeView(hello=True), NodeView(hello=True, state="ready")
LEAVING = NodeView(hello=True, state="ready", interrupted=True)
ONCE = Failure(
    SPOT_INTERRUPTION,
    "the cloud took the instance back soon after its start",
    1,
    NOW,
    instance_is_bad=False,
)
TWICE = dataclasses.replace(ONCE, attempts=2, retry_at=NOW + 10)
BROKEN = NodeView(hello=True, state="failed", error="CUDA out of memory")
GONE_SILENT = NodeView(hello=True, state="ready", heartbeat_age=181)
S, P = Observed, Phase

TABLE: list[tuple[str, View, Any]] = [
    # off
    ("off, wanted", seen(P.OFF, S.STOPPED), Move(P.STARTING, "demand", Guard.WANTED)),
    ("off, unwanted", seen(P.OFF, S.STOPPED, wanted=False), Wait),
    ("off, absent", seen(P.OFF, S.ABSENT), "not_found"),
    ("off, found", seen(P.OFF, S.RUNNING), Move(P.BOOTING, "found_running", Guard.WANTED)),
    (
        "off, found, unwanted",
        seen(P.OFF, S.RUNNING, wanted=False),
        Move(P.BOOTING, "found_running", adopt=True),
    ),
    (
        "off, found, to be stopped",
        seen(P.OFF, S.RUNNING, wanted=False, found_running="stop"),
        Move(P.BOOTING, "found_running"),
    ),
    (
        "off, found, blocked",
        seen(P.OFF, S.RUNNING, wanted=False, blocked=True),
        Move(P.BOOTING, "found_running"),
    ),
    ("off, ignored", seen(P.OFF, S.RUNNING, wanted=False, found_running="ignore"), Wait),
    ("off, being stopped", seen(P.OFF, S.STOPPING), Wait),
    ("off, being started", seen(P.OFF, S.STARTING), Wait),
    # the cloud takes it back
    (
        "ready, interrupted",
        seen(P.READY, S.RUNNING, node=LEAVING, working=True),
        Move(P.DRAINING, "spot_interruption"),
    ),
    (
        "loading, interrupted",
        seen(P.LOADING, S.RUNNING, node=dataclasses.replace(LEAVING, state="loading")),
        Move(P.DRAINING, "spot_interruption"),
    ),
    (
        "booting, interrupted",
        seen(P.BOOTING, S.RUNNING, node=LEAVING),
        Move(P.DRAINING, "spot_interruption"),
    ),
    (
        "interrupted, the cloud cannot be asked",
        seen(P.READY, S.UNKNOWN, node=LEAVING, force_stop=True),
        Move(P.DRAINING, "spot_interruption"),
    ),
    (
        "draining, interrupted, the cloud cannot be asked",
        seen(P.DRAINING, S.UNKNOWN, node=LEAVING),
        Wait,
    ),
    (
        "interrupted, somebody said --now",
        seen(P.READY, S.RUNNING, node=LEAVING, force_stop=True),
        Move(P.STOPPING, "down_now"),
    ),
    (
        "draining, interrupted, in flight",
        seen(P.DRAINING, S.RUNNING, node=LEAVING, working=True, since=NOW - 500),
        Wait(1.0, "draining: work is still running"),
    ),
    (
        "draining, interrupted, just now",
        seen(P.DRAINING, S.RUNNING, node=LEAVING, since=NOW - 1),
        Wait(3.0, "draining"),
    ),
    (
        "draining, interrupted, wanted",
        seen(P.DRAINING, S.RUNNING, node=LEAVING),
        Move(P.STOPPING, "spot_interruption", Guard.NO_WORK, ONCE),
    ),
    (
        "draining, interrupted, unwanted",
        seen(P.DRAINING, S.RUNNING, node=LEAVING, wanted=False, failure=ONCE),
        Move(P.STOPPING, "spot_interruption", Guard.NO_WORK),
    ),
    (
        "draining, interrupted after a good while",
        seen(P.DRAINING, S.RUNNING, node=LEAVING, failure=ONCE, ready_at=NOW - 600),
        Move(P.STOPPING, "spot_interruption", Guard.NO_WORK),
    ),
    (
        "draining, interrupted again too soon",
        seen(P.DRAINING, S.RUNNING, node=LEAVING, failure=ONCE, ready_at=NOW - 599),
        Move(P.STOPPING, "spot_interruption", Guard.NO_WORK, TWICE),
    ),
    (
        "ready, interrupted again",
        seen(P.READY, S.RUNNING, node=LEAVING, failure=ONCE, ready_at=NOW - 599),
        Move(P.DRAINING, "spot_interruption", failure=ONCE),
    ),
    (
        "loading, interrupted again, gone",
        seen(P.LOADING, S.STOPPED, node=LEAVING, failure=ONCE),
        Move(P.FAILED, "spot_interruption", failure=TWICE),
    ),
    (
        "interrupted, silent",
        seen(
            P.DRAINING,
            S.RUNNING,
            node=dataclasses.replace(LEAVING, heartbeat_age=21),
            working=True,
            observed_at=NOW - 3,
        ),
        Observe(),
    ),
    (
        "interrupted, being stopped",
        seen(P.DRAINING, S.STOPPING, node=LEAVING, failure=DUE),
        Move(P.STOPPING, "spot_interruption", failure=ONCE),
    ),
    (
        "just ready, interrupted, gone",
        seen(P.DRAINING, S.STOPPED, node=LEAVING, ready_at=NOW - 9),
        Move(P.OFF, "spot_interruption", failure=ONCE),
    ),
    (
        "loading, interrupted, gone",
        seen(P.LOADING, S.ABSENT, node=LEAVING, failure=UNLUCKY),
        Move(P.OFF, "spot_interruption", failure=ONCE),
    ),
    # starting
    ("starting", seen(P.STARTING, S.STOPPED), Call("start")),
    # `start` reads the cloud itself, and is nothing in an instance that runs (providers/base.py).
    (
        "starting, old look",
        seen(P.STARTING, S.STOPPED, since=NOW, observed_at=NOW - 1),
        Call("start"),
    ),
    (
        "starting, looked before the call",
        seen(P.STARTING, S.STOPPED, since=NOW - 17, observed_at=NOW - 17, called_at=NOW - 16),
        Observe(),
    ),
    (
        "starting, unwanted",
        seen(P.STARTING, S.STOPPED, wanted=False),
        Move(P.OFF, "demand_gone", Guard.UNWANTED),
    ),
    ("starting, called", seen(P.STARTING, S.STOPPED, called_at=NOW - 1), Wait),
    ("starting, nothing came", seen(P.STARTING, S.STOPPED, called_at=NOW - 16), "start_failed"),
    ("starting, wait", seen(P.STARTING, S.STARTING, called_at=NOW - 16), Wait),
    ("starting, too long", seen(P.STARTING, S.STARTING, called_at=NOW - 301), "start_timeout"),
    ("starting, there", seen(P.STARTING, S.RUNNING, wanted=False), Move(P.BOOTING, "running")),
    ("starting, gone", seen(P.STARTING, S.ABSENT), "not_found"),
    ("starting, stopping", seen(P.STARTING, S.STOPPING), Wait),
    # booting
    ("booting", seen(P.BOOTING, S.RUNNING), Wait),
    ("booting, hello", seen(P.BOOTING, S.RUNNING, node=HELLO), Move(P.LOADING, "hello")),
    ("booting, silent", seen(P.BOOTING, S.RUNNING, since=NOW - 301), "agent_silent"),
    (
        "booting, unwanted",
        seen(P.BOOTING, S.RUNNING, wanted=False),
        Move(P.DRAINING, "idle", Guard.UNWANTED),
    ),
    ("booting, lost", seen(P.BOOTING, S.STOPPED), "instance_lost"),
    ("booting, cut", seen(P.BOOTING, S.RUNNING, force_stop=True), Move(P.STOPPING, "down_now")),
    # loading
    ("loading", seen(P.LOADING, S.RUNNING, node=HELLO), Wait),
    ("loading, ready", seen(P.LOADING, S.RUNNING, node=READY), Move(P.READY, "ready")),
    ("loading, broken", seen(P.LOADING, S.RUNNING, node=BROKEN), "service_failed"),
    ("loading, too long", seen(P.LOADING, S.RUNNING, since=NOW - 1201, node=HELLO), "load_timeout"),
    (
        "loading, agent lost",
        seen(P.LOADING, S.RUNNING, node=NodeView(hello=True, heartbeat_age=181)),
        "agent_lost",
    ),
    (
        "loading, blocked",
        seen(P.LOADING, S.RUNNING, wanted=False, blocked=True),
        Move(P.DRAINING, "blocked", Guard.UNWANTED),
    ),
    # ready
    ("ready", seen(P.READY, S.RUNNING, node=READY), Wait),
    (
        "ready, unwanted",
        seen(P.READY, S.RUNNING, node=READY, wanted=False),
        Move(P.DRAINING, "idle", Guard.UNWANTED),
    ),
    (
        "ready, restarted",
        seen(P.READY, S.RUNNING, node=NodeView(hello=True, state="loading")),
        Move(P.LOADING, "service_restarted"),
    ),
    ("ready, broken", seen(P.READY, S.RUNNING, node=BROKEN), "service_failed"),
    ("ready, broken, in use", seen(P.READY, S.RUNNING, node=BROKEN, working=True), Wait),
    (
        "ready, silent",
        seen(P.READY, S.RUNNING, observed_at=NOW - 3, node=NodeView(True, "ready", "", 21)),
        Observe(),
    ),
    (
        "ready, agent lost",
        seen(P.READY, S.RUNNING, node=NodeView(True, "ready", "", 181)),
        "agent_lost",
    ),
    (
        "ready, agent lost, in use",
        seen(P.READY, S.RUNNING, node=NodeView(True, "ready", "", 181), working=True),
        Wait,
    ),
    (
        "ready, agent lost, its work unanswered for as long",
        seen(P.READY, S.RUNNING, node=GONE_SILENT, working=True, unanswered=181),
        "agent_lost",
    ),
    (
        "ready, agent lost, its work answered since",
        seen(P.READY, S.RUNNING, node=GONE_SILENT, working=True, unanswered=179),
        Wait,
    ),
    (
        "ready, its work unanswered for long, the agent reports",
        seen(P.READY, S.RUNNING, node=READY, working=True, unanswered=9000),
        Wait,
    ),
    (
        "ready, broken, its work unanswered",
        seen(P.READY, S.RUNNING, node=BROKEN, working=True, unanswered=181),
        "service_failed",
    ),
    (
        "ready, no agent, a WebUI at work answers no probe",
        seen(P.READY, S.RUNNING, node=GONE_SILENT, working=True, unanswered=700, agentless=True),
        Wait,
    ),
    (
        "ready, no agent, nothing has answered for five times as long",
        seen(P.READY, S.RUNNING, node=GONE_SILENT, working=True, unanswered=901, agentless=True),
        "service_lost",
    ),
    (
        "ready, being stopped",
        seen(P.READY, S.STOPPING, node=READY, ready_at=NOW - T.stable),
        Move(P.STOPPING, "stopped_outside"),
    ),
    (
        "booting, being stopped",
        seen(P.BOOTING, S.STOPPING, observed_reason="taken back", failure=DUE),
        Move(
            P.STOPPING,
            "stopped_outside",
            failure=Failure(
                "instance_lost",
                "taken back",
                DUE.attempts + 1,
                NOW + backoff(DUE.attempts + 1, T),
                False,
            ),
        ),
    ),
    (
        "booting, being stopped, unwanted",
        seen(P.BOOTING, S.STOPPING, wanted=False),
        Move(P.STOPPING, "stopped_outside"),
    ),
    (
        "ready for long, gone",
        seen(P.READY, S.STOPPED, node=READY, ready_at=NOW - 61),
        Move(P.OFF, "stopped_outside"),
    ),
    ("just ready, gone", seen(P.READY, S.STOPPED, node=READY, ready_at=NOW - 59), "instance_lost"),
    (
        "ready, cut",
        seen(P.READY, S.RUNNING, working=True, force_stop=True),
        Move(P.STOPPING, "down_now"),
    ),
    # draining
    (
        "draining, wanted",
        seen(P.DRAINING, S.RUNNING, node=READY),
        Move(P.READY, "demand", Guard.WANTED),
    ),
    (
        "draining, wanted, not ready",
        seen(P.DRAINING, S.RUNNING, node=HELLO),
        Move(P.BOOTING, "demand", Guard.WANTED),
    ),
    (
        "draining, done",
        seen(P.DRAINING, S.RUNNING, wanted=False),
        Move(P.STOPPING, "idle", Guard.IDLE),
    ),
    (
        "draining, not long enough",
        seen(P.DRAINING, S.RUNNING, wanted=False, since=NOW - 1),
        Wait(3.0, "draining"),
    ),
    (
        "draining, known to this leader for a second",
        seen(P.DRAINING, S.RUNNING, wanted=False, known_since=NOW - 1, agentless=True),
        Wait(3.0, "draining"),
    ),
    (
        "draining, and the agent has reported to this leader",
        seen(P.DRAINING, S.RUNNING, wanted=False, known_since=NOW - 5, node=READY, heard_at=NOW),
        Move(P.STOPPING, "idle", Guard.IDLE),
    ),
    (
        "draining, and the agent has not reported to this leader",
        seen(
            P.DRAINING, S.RUNNING, wanted=False, known_since=NOW - 5, node=READY, heard_at=NOW - 6
        ),
        Wait(7.0, "draining"),
    ),
    (
        "draining, and the agent has said no more than hello",
        seen(P.DRAINING, S.RUNNING, wanted=False, found_at=NOW - 6, node=HELLO, heard_at=NOW),
        Wait(6.0, "draining"),
    ),
    (
        "draining, found, and nobody is there to hear an agent",
        seen(P.DRAINING, S.RUNNING, wanted=False, found_at=NOW - 6, unheard=True),
        Move(P.STOPPING, "idle", Guard.IDLE),
    ),
    ("draining, in use", seen(P.DRAINING, S.RUNNING, wanted=False, working=True), Wait),
    (
        "draining, agent lost, its work unanswered for as long",
        seen(
            P.DRAINING,
            S.RUNNING,
            wanted=False,
            working=True,
            node=GONE_SILENT,
            unanswered=181,
        ),
        "agent_lost",
    ),
    (
        "draining, agent lost, its work answered since",
        seen(P.DRAINING, S.RUNNING, wanted=False, working=True, node=GONE_SILENT, unanswered=179),
        Wait,
    ),
    (
        "draining, gone",
        seen(P.DRAINING, S.STOPPED, wanted=False),
        Move(P.OFF, "stopped_outside"),
    ),
    # stopping
    ("stopping", seen(P.STOPPING, S.RUNNING), Call("stop")),
    ("stopping, old look", seen(P.STOPPING, S.RUNNING, since=NOW, observed_at=NOW - 1), Observe()),
    ("stopping, called", seen(P.STOPPING, S.RUNNING, called_at=NOW - 1), Wait),
    ("stopping, again", seen(P.STOPPING, S.RUNNING, called_at=NOW - 16), Call("stop")),
    (
        "stopping, looked before the call",
        seen(P.STOPPING, S.RUNNING, since=NOW - 17, observed_at=NOW - 17, called_at=NOW - 16),
        Observe(),
    ),
    (
        "stopping, begun by another leader or in an earlier store",
        seen(P.STOPPING, S.RUNNING, known_since=NOW - 1),
        Move(P.DRAINING, "stop_unfinished"),
    ),
    (
        "stopping, called by another leader",
        seen(P.STOPPING, S.RUNNING, since=NOW - 30, called_at=NOW - 3, known_since=NOW - 1),
        Wait,
    ),
    (
        "stopping, begun by another leader, not yet looked at by this one",
        seen(P.STOPPING, S.RUNNING, known_since=NOW - 1, observed_at=NOW - 2),
        Observe(),
    ),
    (
        "stopping, begun by another leader, a bad one",
        seen(P.STOPPING, S.RUNNING, known_since=NOW - 1, failure=BAD),
        Move(P.FAILED, "stop_unfinished", failure=BAD),
    ),
    (
        "stopping, begun by another leader, cut",
        seen(P.STOPPING, S.RUNNING, known_since=NOW - 1, force_stop=True),
        Call("stop"),
    ),
    ("stopping, wait", seen(P.STOPPING, S.STOPPING), Wait),
    ("stopping, hangs in its start", seen(P.STOPPING, S.STARTING), Call("stop")),
    ("stopping, done", seen(P.STOPPING, S.STOPPED), Move(P.OFF, "stopped")),
    (
        "stopping, a bad one",
        seen(P.STOPPING, S.STOPPED, failure=BAD),
        Move(P.FAILED, "stopped", failure=BAD),
    ),
    (
        "stopping, taken back once",
        seen(P.STOPPING, S.STOPPED, failure=ONCE),
        Move(P.OFF, "stopped", failure=ONCE),
    ),
    (
        "stopping, taken back once and wanted no more",
        seen(P.STOPPING, S.STOPPED, failure=ONCE, wanted=False),
        Move(P.OFF, "stopped"),
    ),
    (
        "stopping, taken back again",
        seen(P.STOPPING, S.STOPPED, failure=TWICE),
        Move(P.FAILED, "stopped", failure=TWICE),
    ),
    # failed
    (
        "failed, wait",
        seen(P.FAILED, S.STOPPED, failure=UNLUCKY),
        Wait(20.0, "waiting to try again"),
    ),
    (
        "failed, again",
        seen(P.FAILED, S.STOPPED, failure=DUE),
        Move(P.STARTING, "retry", Guard.WANTED, DUE),
    ),
    ("failed, old look", seen(P.FAILED, S.STOPPED, failure=DUE, observed_at=NOW - 2), Observe()),
    (
        "failed, unwanted",
        seen(P.FAILED, S.STOPPED, failure=UNLUCKY, wanted=False),
        Move(P.OFF, "demand_gone", Guard.UNWANTED),
    ),
    (
        "failed, a bad one runs",
        seen(P.FAILED, S.RUNNING, failure=BAD),
        Move(P.STOPPING, "agent_silent", Guard.NO_WORK, BAD),
    ),
    ("failed, a bad one in use", seen(P.FAILED, S.RUNNING, failure=BAD, working=True), Wait),
    (
        "failed, started after all",
        seen(P.FAILED, S.RUNNING, failure=UNLUCKY),
        Move(P.BOOTING, "started_after_all", failure=UNLUCKY),
    ),
    (
        "failed, no such instance",
        seen(P.FAILED, S.ABSENT, failure=DUE),
        Move(P.STARTING, "retry", Guard.WANTED, DUE),  # and there it is found to be absent still
    ),
]


@pytest.mark.parametrize(
    ("view", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_table(view: View, expected: Any) -> None:
    step = decide(view, T, NOW)
    if isinstance(expected, str):
        assert isinstance(step, Move)
        assert (step.to, step.cause) == (P.FAILED, expected)
        assert step.failure is not None
        assert step.failure.message
    elif isinstance(expected, type):
        assert isinstance(step, expected)
    else:
        assert step == expected


def test_the_table_has_every_phase() -> None:
    assert {view.phase for _, view, _ in TABLE} == set(Phase)


class TestLooking:
    def test_never_looked(self) -> None:
        assert decide(seen(P.OFF, S.UNKNOWN, observed_at=None), T, NOW) == Observe()

    @pytest.mark.parametrize(
        ("view", "seconds"),
        [
            (seen(P.READY, S.RUNNING, node=NodeView(True, "ready", heartbeat_age=21)), 2),
            (seen(P.BOOTING, S.RUNNING, since=NOW - 3), 2),
            (seen(P.BOOTING, S.RUNNING, since=NOW - 20), 10),
            (seen(P.LOADING, S.RUNNING, since=NOW - 1000), 15),
            (seen(P.LOADING, S.RUNNING, since=NOW - 1000, node=SILENT), 15),
            # A look that failed once must not hold up who waits.
            (seen(P.OFF, S.UNKNOWN), 2),
            (seen(P.OFF, S.UNKNOWN, wanted=False), 15),
            (seen(P.FAILED, S.UNKNOWN, denied=True, failure=UNLUCKY), 15),
        ],
    )
    def test_how_old_a_look_may_be(self, view: View, seconds: float) -> None:
        young = dataclasses.replace(view, observed_at=NOW - seconds + 0.01)
        old = dataclasses.replace(view, observed_at=NOW - seconds - 0.01)
        assert decide(young, T, NOW) != Observe()
        assert decide(old, T, NOW) == Observe()

    @pytest.mark.parametrize(
        "view",
        [
            seen(P.OFF, S.STOPPED, wanted=False),
            seen(P.READY, S.RUNNING, node=READY),
            seen(P.DRAINING, S.RUNNING, wanted=False),
            seen(P.LOADING, S.RUNNING, since=NOW - 1000, node=NodeView(True, heartbeat_age=1)),
        ],
    )
    def test_what_is_quiet_is_looked_at_once_a_minute_and_all_at_the_same_moment(
        self, view: View
    ) -> None:
        for seen_at in (9_960.0, 9_990.0, 10_019.9):  # in the minute that ends at 10,020
            view = dataclasses.replace(view, observed_at=seen_at)
            before = decide(view, T, 10_019.95)
            assert before != Observe()
            if isinstance(before, Wait):
                assert before.seconds <= 0.06
            assert decide(view, T, 10_020.0) == Observe()

    def test_a_cloud_gets_a_moment_to_show_what_it_has_accepted(self) -> None:
        view = seen(P.STARTING, S.STOPPED, since=NOW - 1, observed_at=NOW - 5, called_at=NOW - 1)
        assert isinstance(decide(view, T, NOW), Wait)
        assert decide(view, T, NOW + 1.5) == Observe()


class TestBackoff:
    def test_doubles(self) -> None:
        assert [backoff(n, T) for n in (1, 2, 3, 4, 5, 6)] == [10, 20, 40, 80, 160, 300]

    @given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(1, 10_000))
    def test_never_shrinks_and_is_bounded(self, n: int, first: float, most: float) -> None:
        timings = Timings(retry=first, retry_max=most)
        assert min(first, most) <= backoff(n, timings) <= backoff(n + 1, timings) <= most

    def test_attempts_count_up_and_start_again_after_a_success(self) -> None:
        lost = seen(P.READY, S.RUNNING, node=BROKEN, failure=UNLUCKY, ready_at=NOW - 59)
        step = decide(lost, T, NOW)
        assert isinstance(step, Move)
        assert step.failure is not None
        assert (step.failure.attempts, step.failure.retry_at) == (3, NOW + 40)
        step = decide(dataclasses.replace(lost, ready_at=NOW - 60), T, NOW)
        assert isinstance(step, Move)
        assert step.failure is not None
        assert (step.failure.attempts, step.failure.retry_at) == (1, NOW + 10)


def test_phases_say_what_they_are() -> None:
    assert [phase for phase in Phase if phase.serves] == [P.READY]
    assert [phase for phase in Phase if phase.waking] == [P.STARTING, P.BOOTING, P.LOADING]
    assert [phase for phase in Phase if phase.settled] == [P.OFF, P.READY, P.FAILED]
    # Every phase can be left, and off can be reached from everywhere.
    reach = {P.OFF}
    while more := {p for p in Phase if TRANSITIONS[p] & reach} - reach:
        reach |= more
    assert reach == set(Phase)
