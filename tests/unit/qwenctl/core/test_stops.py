"""A stop that has no effect is told, and never as done."""

from __future__ import annotations

import pytest

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.explain import explain
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import full_status, page_status
from qwenctl.core.stops import stop_problem
from tests.unit.qwenctl.core.test_status import NOW, lease, move, snap

MS = 1000
REFUSED = {
    "call_error": "you may not stop instances",
    "call_code": "denied",
    "called_at": str((NOW - 3) * MS),
    "refused_since": str((NOW - 90) * MS),
    "observed": "running",
}


def words(snapshot: Snapshot, **more: float) -> list[str]:
    events = [move(NOW - 100, "draining", "stopping", "idle")]
    return [str(reason) for reason in explain(snapshot, events, NOW, **more)]


def stopping(node: dict[str, str] | None = None, **state: str) -> Snapshot:
    fields = {"phase": "stopping", "since": str((NOW - 95) * MS), **state}
    return Snapshot("main", NOW, fields, node=node or {})


def test_why_does_not_tell_a_refused_stop_as_done() -> None:
    text = "\n".join(words(stopping(**REFUSED)))
    assert "the cloud refuses the stop: you may not stop instances, for 1 min 30 s" in text
    assert "it stays on, and costs, until the cloud stops it" in text
    assert "it goes off" not in text
    assert "last stopped" not in text
    assert "its stop was decided 1 min 40 s ago and is not over" in text


def test_why_says_when_the_agent_stops_it() -> None:
    node = {
        "boot_id": "b" * 8,
        "protocol": "2",
        "seen_at": str((NOW - 2) * MS),
        "unneeded_since": str((NOW - 500) * MS),
    }
    own = "or its agent stops it in about 1 min 40 s, unless work is running"
    assert own in words(stopping(node, **REFUSED), dead_man=600.0)[-1]
    for change in ({"protocol": "1"}, {"seen_at": str((NOW - 40) * MS)}, {"unneeded_since": ""}):
        assert "agent" not in words(stopping({**node, **change}, **REFUSED))[-1]


@pytest.mark.parametrize("phase", ["ready", "draining", "loading", "stopping"])
def test_a_cloud_that_cannot_be_asked_is_a_problem_once_nobody_needs_it(phase: str) -> None:
    state = {"observe_error": "the key is invalid", "observe_code": "denied"}
    idle = snap(phase, **state)
    problem = stop_problem(idle)
    assert problem is not None
    assert problem.is_final(NOW)
    assert str(problem).startswith("the cloud cannot be asked, so it is not stopped")
    assert "is stopped" not in words(idle)[-1]
    if phase != "stopping":
        assert stop_problem(snap(phase, leases=(lease(),), **state)) is None


def test_a_refusal_that_may_pass_is_final_after_a_minute() -> None:
    for since, final in ((30, False), (60, True)):
        state = {**REFUSED, "call_code": "throttled", "refused_since": str((NOW - since) * MS)}
        problem = stop_problem(stopping(**state))
        assert problem is not None
        assert problem.is_final(NOW) == final


def test_an_accepted_stop_without_effect() -> None:
    accepted = {"called_at": str((NOW - 5) * MS), "call_error": "", "observed": "running"}
    problem = stop_problem(stopping(**accepted))
    assert problem is not None
    assert str(problem) == "the cloud has accepted the stop, but the instance still runs"
    assert stop_problem(stopping(**{**accepted, "observed": "stopping"})) is None


def test_status_and_page_tell_a_refused_stop() -> None:
    gpu = GpuConfig()
    status = full_status(stopping(**REFUSED), [], gpu)
    assert status["stop_problem"]["code"] == "denied"
    page = page_status(stopping(**REFUSED), [], gpu, may_wake=True)
    assert page["mode"] == {"name": "stop_refused", "waking": False, "idle": False}
    assert page["mode_if_wanted"]["waking"]
    under_way = stopping(called_at=str((NOW - 1) * MS), call_error="", observed="stopping")
    assert full_status(under_way, [], gpu)["stop_problem"] is None
