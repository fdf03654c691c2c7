"""Each time limit of `core.lifecycle.decide`, just before it and at it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Call, Move, Observe, Timings, View, Wait, decide
from qwenctl.core.phase import Guard, Observed, Phase
from tests.unit.qwenctl.core.test_lifecycle import HELLO, LEAVING, NOW, READY, UNLUCKY, seen

T = Timings()
S, P = Observed, Phase
A_MOMENT = 0.05


def failed_by(code: str) -> Any:
    def check(step: Any) -> None:
        assert isinstance(step, Move)
        assert step.to is P.FAILED
        assert step.cause == code

    return check


def to(phase: Phase, guard: Guard = Guard.NONE) -> Any:
    def check(step: Any) -> None:
        assert isinstance(step, Move)
        assert (step.to, step.guard) == (phase, guard)

    return check


def calls(verb: str) -> Any:
    def check(step: Any) -> None:
        assert isinstance(step, (Call, Observe))
        assert step in (Call(verb), Observe())  # type: ignore[arg-type]

    return check


BAD = Failure("agent_silent", "why", 2, NOW, instance_is_bad=True)


@pytest.mark.parametrize(
    ("limit", "field", "view", "at_the_limit"),
    [
        (T.drain, "since", seen(P.DRAINING, S.RUNNING, wanted=False), to(P.STOPPING, Guard.IDLE)),
        (
            T.drain,
            "since",
            seen(P.DRAINING, S.RUNNING, node=LEAVING),
            to(P.STOPPING, Guard.NO_WORK),
        ),
        (T.drain, "since", seen(P.FAILED, S.RUNNING, failure=BAD), to(P.STOPPING, Guard.NO_WORK)),
        (T.start, "since", seen(P.STARTING, S.STARTING), failed_by("start_timeout")),
        (T.start, "since", seen(P.STARTING, S.STOPPED), failed_by("start_timeout")),
        (T.boot, "since", seen(P.BOOTING, S.RUNNING), failed_by("agent_silent")),
        (T.load, "since", seen(P.LOADING, S.RUNNING, node=HELLO), failed_by("load_timeout")),
    ],
    ids=lambda value: value.phase.value if isinstance(value, View) else None,
)
def test_the_time_of_a_phase(limit: float, field: str, view: View, at_the_limit: Any) -> None:
    before = decide(dataclasses.replace(view, **{field: NOW - limit + A_MOMENT}), T, NOW)
    if not (view.phase is P.STARTING and view.observed is S.STOPPED):
        assert isinstance(before, Wait)
        assert before.seconds <= max(A_MOMENT + 0.001, T.observe_moving, 1.0)
    else:
        assert before == Call("start")
    at_the_limit(decide(dataclasses.replace(view, **{field: NOW - limit - 0.001}), T, NOW))


def test_the_drain_waits_for_what_is_left_of_it() -> None:
    view = seen(P.DRAINING, S.RUNNING, wanted=False, since=NOW - 3.5)
    assert decide(view, T, NOW) == Wait(0.5, "draining")


def test_the_cloud_has_its_grace_to_show_a_start() -> None:
    view = seen(P.STARTING, S.STOPPED, called_at=NOW - T.call_grace + A_MOMENT)
    assert isinstance(decide(view, T, NOW), Wait)
    failed_by("start_failed")(
        decide(dataclasses.replace(view, called_at=NOW - T.call_grace), T, NOW)
    )


def test_a_stop_is_called_again_only_after_the_grace() -> None:
    view = seen(P.STOPPING, S.RUNNING, called_at=NOW - T.call_grace + A_MOMENT)
    assert isinstance(decide(view, T, NOW), Wait)
    calls("stop")(decide(dataclasses.replace(view, called_at=NOW - T.call_grace), T, NOW))


def test_a_service_that_was_ready_for_long_and_cannot_load_again_failed_once() -> None:
    """Its phase is `loading` again; the failures from before it was ready do not count."""
    view = seen(P.LOADING, S.RUNNING, node=HELLO, failure=UNLUCKY, since=NOW - T.load - 1)
    for ready_at, attempts in ((NOW - T.stable, 1), (NOW - T.stable + 1, 3), (None, 3)):
        step = decide(dataclasses.replace(view, ready_at=ready_at), T, NOW)
        assert isinstance(step, Move)
        assert step.failure is not None
        assert step.failure.attempts == attempts


@pytest.mark.parametrize(("asked_at", "limit"), [(None, T.heartbeat), (NOW - 1, T.complaint)])
def test_how_long_an_agents_word_stands_against_the_clouds(
    asked_at: float | None, limit: float
) -> None:
    def step(age: float) -> Any:
        gone = NOW - 30
        view = seen(P.READY, S.STOPPED, node=READY, ready_at=NOW - 1000, gone_since=gone)
        return decide(dataclasses.replace(view, heard_at=NOW - age, asked_at=asked_at), T, NOW)

    assert isinstance(step(limit - A_MOMENT), Wait)
    to(P.OFF)(step(limit + A_MOMENT))


@pytest.mark.parametrize(
    ("working", "seen_on", "limit"), [(True, True, T.gone), (False, True, T.observe_moving)]
)
def test_for_how_long_the_looks_must_agree(working: bool, seen_on: bool, limit: float) -> None:
    def step(seconds: float) -> Any:
        view = seen(P.READY, S.STOPPED, node=READY, working=working)
        fields = {"seen_on": seen_on, "gone_since": NOW - seconds, "ready_at": NOW - 1000}
        return decide(dataclasses.replace(view, **fields), T, NOW)  # type: ignore[arg-type]

    assert not isinstance(step(limit - A_MOMENT), Move)
    to(P.OFF)(step(limit))


def test_a_successors_first_look_needs_no_second() -> None:
    view = seen(P.READY, S.STOPPED, gone_since=NOW, seen_on=False, ready_at=NOW - 1000)
    to(P.OFF)(decide(view, T, NOW))


def test_an_agent_that_started_anew_has_to_say_that_the_service_is_ready() -> None:
    for node, phase in ((HELLO, P.LOADING), (READY, None)):
        step = decide(seen(P.READY, S.RUNNING, node=node), T, NOW)
        assert (step.to if isinstance(step, Move) else None) is phase
