"""`qwenctl.core.lifecycle`: what `decide` may do, whatever it sees; and the table in its docstring."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwenctl.core.failures import SPOT_INTERRUPTION, Failure
from qwenctl.core.lifecycle import (
    TRANSITIONS,
    Call,
    Guard,
    Move,
    NodeView,
    Observe,
    Observed,
    Phase,
    Step,
    Timings,
    View,
    Wait,
    backoff,
    decide,
)

NOW = 10_000.0
T = Timings()

ages = st.one_of(
    st.sampled_from([0.0, 0.001, 1.0, 3.999, 4.0, 14.9, 15.0, 59.9, 60.1, 299.0, 301.0, 1201.0]),
    st.floats(0, 5000),
)
times = ages.map(lambda age: NOW - age)
failures = st.builds(
    Failure,
    code=st.sampled_from(["no_capacity", "agent_silent"]),
    message=st.just("why"),
    attempts=st.integers(1, 30),
    retry_at=st.floats(NOW - 400, NOW + 400),
    instance_is_bad=st.booleans(),
)
nodes = st.builds(
    NodeView,
    hello=st.booleans(),
    state=st.sampled_from(["loading", "ready", "failed", ""]),
    error=st.sampled_from(["", "it broke"]),
    heartbeat_age=st.none() | ages,
    interrupted=st.booleans(),
)


@st.composite
def views(draw: st.DrawFn, /, **fixed: Any) -> View:
    """Any view at all, but for two things that the store rules out: a block and being wanted, and
    a call made before its phase."""
    since = draw(times)
    blocked = draw(st.booleans())
    fields: dict[str, Any] = {
        "phase": draw(st.sampled_from(Phase)),
        "since": since,
        "wanted": not blocked and draw(st.booleans()),
        "working": draw(st.booleans()),
        "blocked": blocked,
        "cut": draw(st.booleans()),
        "observed": draw(st.sampled_from(Observed)),
        "observed_at": draw(st.none() | times),
        "denied": draw(st.booleans()),
        "called_at": draw(st.none() | st.floats(since, NOW)),
        "call_error": draw(st.sampled_from(["", "timed out"])),
        "node": draw(nodes),
        "failure": draw(st.none() | failures),
        "ready_at": draw(st.none() | times),
        "found_running": draw(st.sampled_from(["adopt", "stop", "ignore"])),
    }
    return View(**{**fields, **fixed})


def holds(guard: Guard, view: View, now: float, timings: Timings = T) -> bool:
    """What the store's script checks, on the same facts."""
    drained = now - view.since >= timings.drain
    return {
        Guard.NONE: True,
        Guard.WANTED: view.wanted,
        Guard.UNWANTED: not view.wanted,
        Guard.IDLE: not view.wanted and not view.working and drained,
        Guard.NO_WORK: not view.working and drained,
    }[guard]


def after(view: View, step: Step, now: float) -> View:
    """The view once that step has been made, if nothing else happens."""
    if isinstance(step, Observe):
        return dataclasses.replace(view, observed_at=now)
    assert isinstance(step, Move)
    new = dataclasses.replace(
        view, phase=step.to, since=now, called_at=None, call_error="", failure=step.failure
    )
    if step.adopt:
        new = dataclasses.replace(new, wanted=True)
    if step.to in (Phase.STARTING, Phase.OFF):
        new = dataclasses.replace(new, cut=False, ready_at=None, node=NodeView())
    if step.to is Phase.STOPPING:
        new = dataclasses.replace(new, cut=False)
    if step.to is Phase.READY and view.phase is Phase.LOADING:
        new = dataclasses.replace(new, ready_at=now)
    return new


class TestWhateverItSees:
    @given(views())
    @settings(max_examples=300)
    def test_every_move_is_a_transition_whose_guard_holds(self, view: View) -> None:
        step = decide(view, T, NOW)
        if isinstance(step, Move):
            assert step.to in TRANSITIONS[view.phase]
            assert step.cause
            # Otherwise the store would refuse the move, and the same be decided again at once.
            assert holds(step.guard, view, NOW)

    @given(views(phase=Phase.STARTING, observed=Observed.STOPPED, called_at=None))
    @settings(max_examples=300)
    def test_starts_only_what_was_seen_to_be_stopped_a_minute_ago(self, view: View) -> None:
        """Not later: a provider's `start` reads the cloud itself, or is nothing in what runs."""
        if decide(view, T, NOW) == Call("start"):
            assert view.observed_at is not None
            assert view.observed_at > NOW - T.observe_settled
            assert view.wanted

    @given(views())
    @settings(max_examples=300)
    def test_calls_belong_to_their_phase(self, view: View) -> None:
        step = decide(view, T, NOW)
        if step == Call("start"):
            assert (view.phase, view.observed) == (Phase.STARTING, Observed.STOPPED)
            assert view.called_at is None
        elif isinstance(step, Call):
            assert view.phase is Phase.STOPPING
            assert view.observed in (Observed.RUNNING, Observed.STARTING)
            assert view.observed_at is not None
            assert view.observed_at >= view.since
            assert view.called_at is None or NOW - view.called_at >= T.call_grace

    @given(views(observed=Observed.RUNNING))
    @settings(max_examples=300)
    def test_it_stops_only_what_nobody_uses(self, view: View) -> None:
        step = decide(view, T, NOW)
        if not isinstance(step, Move) or step.to is not Phase.STOPPING:
            return
        if step.cause == "down_now":
            assert view.cut
        elif view.phase is Phase.FAILED:
            assert step.guard is Guard.NO_WORK
        elif step.cause == "spot_interruption":
            assert (view.phase, step.guard) == (Phase.DRAINING, Guard.NO_WORK)
            assert view.node.interrupted
        else:
            assert step.guard is Guard.IDLE

    @given(views())
    @settings(max_examples=300)
    def test_what_the_cloud_takes_back_is_never_for_new_requests(self, view: View) -> None:
        view = dataclasses.replace(view, node=dataclasses.replace(view.node, interrupted=True))
        step = decide(view, T, NOW)
        up = (Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING)
        if view.phase not in up:
            return
        if isinstance(step, Move):
            assert step.to in (Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.FAILED)
        elif isinstance(step, Wait):
            assert view.phase is Phase.DRAINING

    @given(views(observed=Observed.UNKNOWN))
    def test_nothing_is_done_blind(self, view: View) -> None:
        step = decide(view, T, NOW)
        assert not isinstance(step, Call)
        if isinstance(step, Move):
            assert (step.to, step.cause) in (
                (Phase.FAILED, "denied"),
                (Phase.DRAINING, "spot_interruption"),  # the node says so
            )

    @given(views())
    def test_a_failure_says_why(self, view: View) -> None:
        step = decide(view, T, NOW)
        if isinstance(step, Move) and step.to is Phase.FAILED and step.cause != "stopped":
            assert step.failure is not None
            assert step.failure.code == step.cause
            assert step.failure.message or step.cause == "denied"  # there the cloud's words
            assert 1 <= step.failure.attempts <= (view.failure.attempts if view.failure else 0) + 1
            assert step.failure.retry_at >= NOW + T.retry

    @given(views(), st.sampled_from(Observed))
    @settings(max_examples=300)
    def test_it_comes_to_rest(self, view: View, truth: Observed) -> None:
        """Its own moves lead to a wait or a call in a few steps."""
        for _ in range(10):
            step = decide(view, T, NOW)
            if isinstance(step, Wait):
                assert step.seconds > 0
                assert step.why
                return
            if isinstance(step, Call):
                return
            if isinstance(step, Observe):
                view = dataclasses.replace(view, observed=truth)
            view = after(view, step, NOW)
        raise AssertionError(f"still busy: {view}")


class LongLife(RuleBasedStateMachine):
    """A GPU's life: steps are made as decided, and the world changes in between."""

    @initialize(found_running=st.sampled_from(["adopt", "stop", "ignore"]))
    def begin(self, found_running: Any) -> None:
        self.now = NOW
        self.cloud = Observed.STOPPED
        self.starts_open = 0
        self.view = View(
            phase=Phase.OFF,
            since=NOW,
            wanted=False,
            working=False,
            blocked=False,
            cut=False,
            observed=Observed.UNKNOWN,
            observed_at=None,
            found_running=found_running,
        )

    def change(self, **fields: Any) -> None:
        self.view = dataclasses.replace(self.view, **fields)

    @rule()
    def step(self) -> None:
        step = decide(self.view, T, self.now)
        if isinstance(step, Observe):
            self.change(observed=self.cloud, observed_at=self.now)
        elif isinstance(step, Move):
            assert step.to in TRANSITIONS[self.view.phase]
            assert holds(step.guard, self.view, self.now)
            self.view = after(self.view, step, self.now)
        elif isinstance(step, Call):
            self.call(step)
        else:
            self.now += step.seconds

    def call(self, call: Call) -> None:
        if call.verb == "start":
            assert self.starts_open == 0, "a second start"
            if self.cloud is Observed.STOPPED:
                self.cloud = Observed.STARTING
                self.starts_open = 1
        else:
            assert self.view.phase is Phase.STOPPING
            if self.cloud is Observed.RUNNING:
                self.cloud = Observed.STOPPING
                self.starts_open = 0
        self.change(called_at=self.now, observed_at=None)

    @rule(wanted=st.booleans(), blocked=st.booleans(), working=st.booleans(), cut=st.booleans())
    def people(self, wanted: bool, blocked: bool, working: bool, cut: bool) -> None:
        on = self.view.phase not in (Phase.OFF, Phase.STOPPING)
        self.change(wanted=wanted and not blocked, blocked=blocked, working=working, cut=cut and on)

    @rule(node=nodes)
    @precondition(lambda self: self.cloud is Observed.RUNNING)
    def agent(self, node: NodeView) -> None:
        self.change(node=node)

    @rule(seconds=st.sampled_from([0.1, 2.0, 20.0, 200.0, 2000.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def cloud_moves_on(self) -> None:
        self.cloud = {
            Observed.STARTING: Observed.RUNNING,
            Observed.STOPPING: Observed.STOPPED,
        }.get(self.cloud, self.cloud)
        if self.cloud is Observed.STOPPED:
            self.starts_open = 0

    @rule()
    def instance_dies(self) -> None:
        if self.cloud in (Observed.RUNNING, Observed.STARTING):
            self.cloud = Observed.STOPPED
            self.starts_open = 0

    @invariant()
    def a_failed_one_knows_why(self) -> None:
        view = getattr(self, "view", None)
        if view is not None and view.phase is Phase.FAILED:
            assert view.failure is not None


LongLife.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestLongLife = LongLife.TestCase


def seen(phase: Phase, observed: Observed, **fields: Any) -> View:
    """A view with a fresh observation, five seconds into the phase."""
    return View(
        **{
            "phase": phase,
            "since": NOW - 5,
            "wanted": True,
            "working": False,
            "blocked": False,
            "cut": False,
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
        Move(P.STOPPING, "found_running", Guard.IDLE),
    ),
    (
        "off, found, just off",
        seen(P.OFF, S.RUNNING, wanted=False, found_running="stop", since=NOW - 1),
        Wait(3.0, "found running: waiting until nobody can be using it"),
    ),
    (
        "off, found, blocked",
        seen(P.OFF, S.RUNNING, wanted=False, blocked=True),
        Move(P.STOPPING, "found_running", Guard.IDLE),
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
        seen(P.READY, S.UNKNOWN, node=LEAVING, cut=True),
        Move(P.DRAINING, "spot_interruption"),
    ),
    (
        "draining, interrupted, the cloud cannot be asked",
        seen(P.DRAINING, S.UNKNOWN, node=LEAVING),
        Wait,
    ),
    (
        "interrupted, somebody said --now",
        seen(P.READY, S.RUNNING, node=LEAVING, cut=True),
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
    ("booting, cut", seen(P.BOOTING, S.RUNNING, cut=True), Move(P.STOPPING, "down_now")),
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
        "ready, being stopped",
        seen(P.READY, S.STOPPING, node=READY),
        Move(P.STOPPING, "stopped_outside"),
    ),
    (
        "ready for long, gone",
        seen(P.READY, S.STOPPED, node=READY, ready_at=NOW - 61),
        Move(P.OFF, "stopped_outside"),
    ),
    ("just ready, gone", seen(P.READY, S.STOPPED, node=READY, ready_at=NOW - 59), "instance_lost"),
    ("ready, cut", seen(P.READY, S.RUNNING, working=True, cut=True), Move(P.STOPPING, "down_now")),
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
    ("draining, in use", seen(P.DRAINING, S.RUNNING, wanted=False, working=True), Wait),
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
