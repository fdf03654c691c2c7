"""What holds in whatever state the rules of `core.lifecycle` meet, and over a long life."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import (
    Call,
    Move,
    NodeView,
    Observe,
    Step,
    Timings,
    View,
    Wait,
    decide,
)
from qwenctl.core.phase import TRANSITIONS, Guard, Observed, Phase

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
        "force_stop": draw(st.booleans()),
        "observed": draw(st.sampled_from(Observed)),
        "observed_at": draw(st.none() | times),
        "gone_since": draw(st.none() | times),
        "heard_at": draw(st.none() | times),
        "denied": draw(st.booleans()),
        "called_at": draw(st.none() | st.floats(since, NOW)),
        "call_error": draw(st.sampled_from(["", "timed out"])),
        "node": draw(nodes),
        "failure": draw(st.none() | failures),
        "ready_at": draw(st.none() | times),
        "found_running": draw(st.sampled_from(["adopt", "stop", "ignore"])),
    }
    return View(**{**fields, **fixed})


def reports(view: View) -> bool:
    """Whether the agent has been heard of lately."""
    return view.heard_at is not None and NOW - view.heard_at <= T.heartbeat


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
        new = dataclasses.replace(new, force_stop=False, ready_at=None, node=NodeView())
    if step.to is Phase.STOPPING:
        new = dataclasses.replace(new, force_stop=False)
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
            assert view.observed in (Observed.RUNNING, Observed.STARTING) or reports(view)
            assert view.observed_at is not None
            assert view.observed_at >= view.since
            assert view.called_at is None or NOW - view.called_at >= T.call_grace

    @given(views(), st.sampled_from([Observed.STOPPED, Observed.ABSENT]))
    @settings(max_examples=500)
    def test_nothing_is_gone_whose_agent_reports(self, view: View, gone: Observed) -> None:
        view = dataclasses.replace(view, observed=gone)
        step = decide(view, T, NOW)
        vouched = view.phase.running and reports(view) and not view.node.interrupted
        if vouched and isinstance(step, Move):
            # As if it had just been seen to run; when to look next is another question.
            runs = dataclasses.replace(view, observed=Observed.RUNNING, observed_at=NOW)
            assert step == decide(runs, T, NOW)

    @given(views(observed=Observed.RUNNING))
    @settings(max_examples=300)
    def test_it_stops_only_what_nobody_uses(self, view: View) -> None:
        step = decide(view, T, NOW)
        if not isinstance(step, Move) or step.to is not Phase.STOPPING:
            return
        if step.cause == "down_now":
            assert view.force_stop
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
            force_stop=False,
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
        self.change(
            wanted=wanted and not blocked, blocked=blocked, working=working, force_stop=cut and on
        )

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
