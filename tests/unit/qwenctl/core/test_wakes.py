"""The fold of the history into wakes, with hand-made histories."""

from __future__ import annotations

import json

import pytest

from qwenctl.core.events import Event, decode
from qwenctl.core.wakes import Mark, Outcome, Wake, expected, learned, wakes


def event(time: float, kind: str, fields: dict[str, str] | None = None) -> Event:
    stored = {"kind": kind, "time": str(time * 1000), **(fields or {})}
    return decode(f"{time:.0f}-0", stored)


def move(time: float, source: str, to: str, cause: str = "", **fields: str) -> Event:
    return event(
        time, "transition", {"from": source, "to": to, "cause": cause, "actor": "ctl", **fields}
    )


def lease(
    time: float, name: str = "request:anna", cause: str = "request", ttl: float = 600
) -> Event:
    expiry = f"{(time + ttl) * 1000:.0f}"
    return event(time, "lease", {"name": name, "cause": cause, "actor": "anna", "expiry": expiry})


def call(time: float, error: str = "") -> Event:
    return event(time, "call", {"verb": "start", "error": error})


def node(time: float, progress: str) -> Event:
    return event(time, "node", {"state": "loading", "progress": progress})


def cold(at: float, start: float = 10.0, boot: float = 5.0, load: float = 20.0) -> list[Event]:
    """A whole successful wake, and the sleep after it."""
    running, hello = at + 1 + start, at + 1 + start + boot
    ready = hello + load
    return [
        lease(at),
        move(at + 0.5, "off", "starting", "demand"),
        call(at + 1),
        move(running, "starting", "booting", "running"),
        move(hello, "booting", "loading", "hello"),
        node(hello + 1, "pull"),
        node(hello + 1, "pull"),
        node(hello + 4, "weights"),
        move(ready, "loading", "ready", "ready"),
        event(ready + 0.25, "first-byte", {}),
        event(ready + 0.5, "first-byte", {}),
        move(ready + 100, "ready", "draining", "idle"),
        move(ready + 104, "draining", "stopping", "idle"),
        move(ready + 110, "stopping", "off", "stopped"),
    ]


def test_a_whole_wake_has_every_step() -> None:
    [wake] = wakes(cold(1000))
    assert wake.outcome is Outcome.READY
    assert (wake.started_at, wake.actor, wake.cause, wake.lease) == (
        1000,
        "anna",
        "request",
        "request:anna",
    )
    assert wake.id == "1000-0"
    assert wake.durations == {
        "request": 1.0, "start": 10.0, "boot": 5.0, "load": 20.0, "first_byte": 0.25,
    }  # fmt: skip
    assert wake.seconds == 36.0
    assert wake.phases == {"pull": 3.0, "weights": 16.0}


def test_the_first_demand_is_the_click_and_later_ones_change_nothing() -> None:
    events = [
        lease(10, "request:a"),
        lease(10.2, "request:b"),
        *cold(11)[1:3],
        lease(12, "request:c"),
    ]
    [wake] = wakes(events)
    assert (wake.started_at, wake.lease) == (10, "request:a")
    assert wake.outcome is Outcome.UNDER_WAY
    assert wake.seconds is None


def test_an_expired_demand_is_no_click() -> None:
    [wake] = wakes([lease(10, ttl=60), *cold(1000)])
    assert wake.started_at == 1000


@pytest.mark.parametrize("gone", ["down", "block"])
def test_a_demand_that_was_dropped_is_no_click(gone: str) -> None:
    [wake] = wakes([lease(10), event(11, gone), lease(20), *cold(20)[1:]])
    assert wake.started_at == 20


def test_a_demand_while_stopping_waits_for_off() -> None:
    first = cold(1000)
    stopping = first[-2].time
    events = [
        *first[:-1],
        lease(stopping + 1),
        first[-1],
        move(stopping + 7, "off", "starting", "demand"),
    ]
    assert wakes(events)[-1].started_at == stopping + 1


def test_unblocking_wakes_only_for_a_demand_from_before() -> None:
    before = [lease(1), event(2, "block"), event(5, "unblock", {"actor": "bob"})]
    assert wakes([*before, move(5.1, "off", "starting", "demand")])[0].started_at == 5
    assert wakes([*before[1:], *cold(100)])[0].started_at == 100


def test_failure_and_retry_are_two_wakes() -> None:
    failure = json.dumps({"code": "no_capacity", "message": "none free"})
    events = [
        lease(0),
        move(1, "off", "starting", "demand"),
        move(2, "starting", "failed", "no_capacity", failure=failure),
        lease(5, "request:late"),
        move(12, "failed", "starting", "retry"),
        call(12.1),
        move(20, "starting", "booting", "running"),
    ]
    first, second = wakes(events)
    assert (first.outcome, first.code, first.ended_at) == (Outcome.FAILED, "no_capacity", 2)
    assert (second.started_at, second.cause, second.outcome) == (12, "retry", Outcome.UNDER_WAY)
    assert second.durations["start"] == pytest.approx(7.9)


def test_abandoned_while_loading() -> None:
    events = [
        *cold(0)[:5],
        move(20, "loading", "draining", "idle"),
        move(24, "draining", "stopping", "idle"),
        move(30, "stopping", "off", "stopped"),
    ]
    [wake] = wakes(events)
    assert (wake.outcome, wake.code, wake.ended_at) == (Outcome.ABANDONED, "idle", 24)


def test_a_drain_that_is_taken_back_is_the_same_wake() -> None:
    events = [
        *cold(0)[:5],
        move(17, "loading", "draining", "idle"),
        move(18, "draining", "booting", "demand"),
        move(19, "booting", "loading", "hello"),
        move(30, "loading", "ready", "ready"),
    ]
    [wake] = wakes(events)
    assert wake.outcome is Outcome.READY
    assert wake.marks[Mark.RUNNING] == 11  # the first time counts


def test_an_instance_found_running_is_a_wake_that_teaches_nothing() -> None:
    events = [
        move(0, "off", "booting", "found_running"),
        move(1, "booting", "loading", "hello"),
        move(2, "loading", "ready", "ready"),
    ]
    [wake] = wakes(events)
    assert (wake.cause, wake.actor, wake.cold) == ("found_running", "ctl", False)
    assert expected([wake], 100.0)["load"] == 50.0


def test_a_history_without_its_beginning_and_with_unknown_phases() -> None:
    whole = cold(0)
    assert [wake.outcome for wake in wakes(whole[4:])] == [Outcome.READY]
    assert wakes([move(1, "off", "hibernating")]) == []
    assert wakes([event(1, "transition", {}), event(2, "what")]) == []


def test_expected_is_the_median_of_the_successful_ones() -> None:
    history = [
        wake for at, start in ((0, 10), (1000, 30), (2000, 11)) for wake in wakes(cold(at, start))
    ]
    failed = Wake("x", 0, "", "", marks={Mark.CLICK: 0, Mark.CALL: 500}, outcome=Outcome.FAILED)
    usual = expected([*history, failed], 999.0)
    assert usual == {"request": 1.0, "start": 11.0, "boot": 5.0, "load": 20.0}


def test_expected_looks_at_the_last_twenty() -> None:
    old = [wake for n in range(30) for wake in wakes(cold(n * 1000, start=500))]
    new = [wake for n in range(30, 50) for wake in wakes(cold(n * 1000, start=7))]
    assert expected(old + new, 0.0)["start"] == 7.0


def test_without_a_history_the_estimate_is_split() -> None:
    usual = expected([], 90.0)
    assert sum(usual.values()) == pytest.approx(90.0)
    assert usual["load"] > usual["start"] > usual["request"]


def test_only_a_whole_successful_wake_teaches() -> None:
    assert not learned([])
    assert not learned(wakes(cold(0)[:5]))
    assert not learned(wakes([move(1, "off", "booting", "found_running"), *cold(0)[4:9]]))
    assert learned(wakes(cold(0)))
