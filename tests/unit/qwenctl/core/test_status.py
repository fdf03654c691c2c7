"""What page, `status` and `why` say, from a real store where one is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from qwenctl.cli.use.follow import StepLines
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.events import Event, decode
from qwenctl.core.explain import explain
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import full_status, page_status
from qwenctl.core.words import cause_words, lease_words, other_port
from qwenctl.lib.text import duration, one_line
from qwenctl.protocol.messages import Report, ServiceState

GPU = GpuConfig(boot_estimate=40.0)
NOW = 10_000.0


def snap(
    phase: str, *, leases: tuple[Lease, ...] = (), blocks: tuple[Lease, ...] = (), **state: str
) -> Snapshot:
    since = str(int((NOW - 5) * 1000))
    fields = {"phase": phase, "since": since, "observed": "stopped", **state}
    return Snapshot("main", NOW, fields, leases, blocks)


def lease(name: str = "request:anna", left: float = 600.0, **more: Any) -> Lease:
    return Lease(name, NOW + left, since=NOW - 9, **{"actor": "anna", "reason": "", **more})


def event(time: float, kind: str, **fields: str) -> Event:
    stored = {"kind": kind, "time": str(time * 1000), "actor": "", **fields}
    return decode(f"{time:.0f}-0", stored)


def move(time: float, source: str, to: str, cause: str = "") -> Event:
    return event(time, "transition", **{"from": source, "to": to, "cause": cause})


STARTED = [
    event(NOW - 9, "lease", name="request:anna", cause="request", actor="anna", expiry="99999000"),
    move(NOW - 8.9, "off", "starting", "demand"),
    event(NOW - 8.8, "call", verb="start"),
]
BOOTING = [*STARTED, move(NOW - 5, "starting", "booting", "running")]
LOADING = [*BOOTING, move(NOW - 4, "booting", "loading", "hello")]


def states(page: dict[str, Any]) -> str:
    return " ".join(f"{step['key']}={step['state']}" for step in page["steps"])


def test_the_contract_of_the_page() -> None:
    page = page_status(snap("off"), [], GPU, may_wake=True)
    assert list(page) == [
        "gpu", "phase", "wanted", "steps", "elapsed_seconds", "eta_seconds", "progress",
        "problem", "interruption", "failure", "note", "blocked", "wake_on", "may_wake",
        "mode", "mode_if_wanted",
    ]  # fmt: skip
    assert [step["key"] for step in page["steps"]] == ["request", "start", "boot", "load", "ready"]
    assert all(list(step) == ["key", "state", "seconds", "expected"] for step in page["steps"])
    json.dumps(page, allow_nan=False)


def test_off_and_nobody_asked() -> None:
    page = page_status(snap("off"), [], GPU, may_wake=False)
    assert {step["state"] for step in page["steps"]} == {"todo"}
    assert (page["wanted"], page["eta_seconds"], page["elapsed_seconds"]) == (False, None, None)
    assert page["may_wake"] is False


@pytest.mark.parametrize(
    ("phase", "events", "expected"),
    [
        ("off", [], "request=active start=todo boot=todo load=todo ready=todo"),
        ("starting", STARTED[:2], "request=active start=todo boot=todo load=todo ready=todo"),
        ("starting", STARTED, "request=done start=active boot=todo load=todo ready=todo"),
        ("booting", BOOTING, "request=done start=done boot=active load=todo ready=todo"),
        ("loading", LOADING, "request=done start=done boot=done load=active ready=todo"),
        ("loading", [], "request=done start=done boot=done load=active ready=todo"),
        ("ready", LOADING, "request=done start=done boot=done load=done ready=done"),
        ("stopping", [], "request=active start=todo boot=todo load=todo ready=todo"),
    ],
)
def test_steps_by_phase(phase: str, events: list[Event], expected: str) -> None:
    page = page_status(snap(phase, leases=(lease(),)), events, GPU, may_wake=True)
    assert states(page) == expected


WAKING = {"requested", "interrupted", "restarting", "starting", "booting", "loading", "ready"}
IDLE = {"asleep", "draining", "stopping", "failed"}


@pytest.mark.parametrize(
    ("phase", "interrupted", "asleep", "wanted", "blocked"),
    [
        ("off", False, "asleep", "requested", "blocked"),
        ("starting", False, "starting", "starting", "blocked"),
        ("booting", False, "booting", "booting", "blocked"),
        ("loading", False, "loading", "loading", "blocked"),
        ("loading", True, "loading", "loading", "blocked"),
        ("ready", False, "ready", "ready", "ready"),
        ("ready", True, "ready", "ready", "ready"),
        ("draining", False, "draining", "draining", "blocked"),
        ("draining", True, "stopping", "interrupted", "blocked"),
        ("stopping", False, "stopping", "restarting", "blocked"),
        ("stopping", True, "stopping", "interrupted", "blocked"),
        ("failed", False, "failed", "retrying", "blocked"),
    ],
)
def test_the_mode_of_the_page(
    phase: str, interrupted: bool, asleep: str, wanted: str, blocked: str
) -> None:
    node = {"interrupted_at": "1", "interruption_ends": "2"} if interrupted else {}

    def modes(**given: Any) -> tuple[str, str]:
        page = page_status(replace(snap(phase, **given), node=node), [], GPU, may_wake=True)
        for mode in (page["mode"], page["mode_if_wanted"]):
            name = mode["name"]
            assert mode == {"name": name, "waking": name in WAKING, "idle": name in IDLE}
        return page["mode"]["name"], page["mode_if_wanted"]["name"]

    assert modes() == (asleep, wanted)
    assert modes(leases=(lease(),)) == (wanted, wanted)
    assert modes(leases=(lease(),), blocks=(lease("maintenance:ada"),)) == (blocked, blocked)


def test_durations_and_eta_while_loading() -> None:
    page = page_status(snap("loading", leases=(lease(),)), LOADING, GPU, may_wake=True)
    by_key = {step["key"]: step for step in page["steps"]}
    assert by_key["start"]["seconds"] == pytest.approx(3.8)
    assert by_key["load"]["seconds"] == 4.0
    assert by_key["load"]["expected"] == 20.0
    assert page["elapsed_seconds"] == 9.0
    assert page["eta_seconds"] == 16.0


def test_eta_never_goes_below_the_steps_that_follow() -> None:
    slow = snap("starting", leases=(lease(),))
    old = [Event(e.id, e.time - 500, e.kind, e.fields) for e in STARTED]
    assert page_status(slow, old, GPU, may_wake=True)["eta_seconds"] == 30.0  # boot and load


def test_progress_comes_from_the_report() -> None:
    from qwenctl.protocol.messages import Progress

    report = Report(
        gpu="main", boot_id="b" * 8, start_seq=1, state="loading",
        progress=Progress(phase="weights", percent=40, eta=12, text="3 of 8"),
    )  # fmt: skip
    base = snap("loading", leases=(lease(),))
    loading = Snapshot(
        base.gpu, base.now, base.state, base.leases, (), {"report": report.model_dump_json()}
    )
    page = page_status(loading, LOADING, GPU, may_wake=True)
    assert page["progress"] == {
        "phase": "weights",
        "percent": 40.0,
        "eta": 12.0,
        "text": "3 of 8",
    }


FAILURE = json.dumps(
    {
        "code": "no_capacity",
        "message": "none free",
        "attempts": 2,
        "retry_at": NOW + 20,
        "condemns": False,
    }
)


def test_failure_with_and_without_demand() -> None:
    failed = [
        *STARTED,
        event(NOW - 1, "transition", **{"from": "starting", "to": "failed", "failure": FAILURE}),
    ]
    wanted = page_status(
        snap("failed", leases=(lease(),), failure=FAILURE), failed, GPU, may_wake=True
    )
    assert wanted["failure"] == {
        "code": "no_capacity", "message": "none free", "attempts": 2, "retry_in_seconds": 20.0,
    }  # fmt: skip
    assert states(wanted).startswith("request=done start=failed boot=todo")
    alone = page_status(snap("failed", failure=FAILURE), failed, GPU, may_wake=True)
    assert alone["failure"]["retry_in_seconds"] is None


def test_blocked_names_the_block_that_lasts_longest() -> None:
    blocks = (
        lease("budget", 50.0, actor="", reason="used up"),
        Lease("maintenance:bob", inf, "driver", "bob", NOW - 60),
    )
    page = page_status(snap("off", blocks=blocks, leases=(lease(),)), [], GPU, may_wake=True)
    assert page["blocked"] == {
        "kind": "maintenance",
        "by": "bob",
        "reason": "driver",
        "seconds_left": None,
    }
    assert page["wanted"] is False
    assert page["eta_seconds"] is None
    json.dumps(page, allow_nan=False)


def test_full_status_is_json_and_counts_the_idle_time() -> None:
    ready = snap("ready", leases=(lease(left=60), lease("pin:bob", 300.0)), observed="running")
    full = full_status(ready, LOADING, GPU, url="http://x")
    assert full["idle_seconds_left"] == 300.0
    assert full["cloud"]["state"] == "running"
    assert {entry["kind"] for entry in full["leases"]} == {"request", "pin"}
    json.dumps(full, allow_nan=False)
    working = snap("ready", leases=(lease("inflight:p1", 30.0),))
    assert full_status(working, [], GPU)["idle_seconds_left"] is None


def texts(*args: Any, **kwargs: Any) -> str:
    return "\n".join(str(reason) for reason in explain(*args, **kwargs))


def test_why_names_who_keeps_it_on_and_what_happens_next() -> None:
    ready = snap("ready", leases=(lease("pin:bob", 300.0, actor="bob", reason="demo"),))
    said = texts(ready, LOADING, drain=4.0)
    assert "kept on by bob (qwenctl up): demo" in said
    assert "for another 5 min" in said
    assert "needed by a visitor (anna)" in said
    assert "stopped in 5 min 4 s unless somebody uses it" in said
    assert "qwenctl serve" in said  # no controller holds the lock


@pytest.mark.parametrize(("ago", "told"), [(None, False), (29.0, False), (200.0, True)])
def test_requests_that_the_node_leaves_unanswered_are_told(ago: float | None, told: bool) -> None:
    answered_at = None if ago is None else NOW - ago
    work = Lease("inflight:p", NOW + 30, "requests in flight", "p", NOW - 300, answered_at)
    said = texts(snap("ready", leases=(work,)), LOADING)
    assert ("the node has answered nothing for 3 min 20 s" in said) == told


def test_a_doubted_claim_of_work_is_told() -> None:
    doubt = "the server says that 1 request runs, but no token has come for 15 min: not counted"
    service = ServiceState(name="vllm", state="ready", port=8000, doubt=doubt)
    report = Report(
        gpu="main", boot_id="boot-0001", start_seq=1, state="ready", services=(service,)
    )
    ready = replace(snap("ready"), node={"state": "ready", "report": report.model_dump_json()})
    assert f"vllm: {doubt}" in texts(ready, LOADING)
    assert full_status(ready, LOADING, GPU)["node"]["services"][0]["doubt"] == doubt


@pytest.mark.parametrize(
    ("phase", "ago", "port", "told"),
    [
        ("ready", 3, 7861, True),
        ("draining", 3, 7861, True),
        ("ready", 3, 7860, False),  # the first service's port
        ("ready", 3, 9000, False),  # the second's
        ("ready", 300, 7861, False),  # an old report
        ("stopping", 3, 7861, False),
    ],
)
def test_services_on_other_ports_than_the_settings_say_are_told(
    phase: str, ago: float, port: int, told: bool
) -> None:
    services = tuple(
        ServiceState(name=name, state="ready", port=own)
        for name, own in (("webui", 7860), ("vllm", 9000))
    )
    report = Report(gpu="main", boot_id="boot-0001", start_seq=1, state="ready", services=services)
    node = {"report": report.model_dump_json(), "seen_at": str(int((NOW - ago) * 1000))}
    there = replace(snap(phase), node=node)
    text = (
        f"the node runs webui on port 7860, vllm on port 9000, but these settings say port {port}"
    )
    assert other_port(there, port) == (text if told else "")
    assert (f"{text}: restart `qwenctl serve`" in texts(there, LOADING, port=port)) == told
    assert full_status(there, LOADING, GPU)["port_problem"] == other_port(there, GPU.port)


def test_what_nobody_verifies_is_told_as_of_the_last_look() -> None:
    ready = snap("ready", leases=(lease(),), observed_at=str(int((NOW - 3) * 1000)))
    said = "(as of 3.0 s ago, not verified: no proxy runs)"
    assert said in texts(ready, LOADING)
    full = full_status(ready, LOADING, GPU)
    assert (full["verified"], full["as_of"]) == (False, NOW - 3)
    led = replace(ready, lock={"owner": "proxy", "expiry": str(int((NOW + 9) * 1000))})
    assert "not verified" not in texts(led, LOADING)
    full = full_status(led, LOADING, GPU)
    assert (full["verified"], full["as_of"]) == (True, None)


def test_the_end_in_words_and_as_a_time_are_the_same() -> None:
    last = explain(snap("ready", leases=(lease(left=9.2),)), LOADING, drain=4.0)[-1]
    assert "stopped in 13 s" in last.text
    assert last.until == pytest.approx(NOW + 13.2)


def test_what_keeps_a_service_from_starting(capsys: pytest.CaptureFixture[str]) -> None:
    node = {"version": "1", "error": "webui: Docker does not answer\nmore", "boot_id": "b"}
    loading = replace(snap("loading", leases=(lease(),)), node=node)
    page = page_status(loading, LOADING, GPU, may_wake=True)
    assert page["problem"] == "webui: Docker does not answer"
    lines = StepLines()
    for _ in range(2):
        lines.show(page, known=False)
    assert capsys.readouterr().err.count("  webui: Docker does not answer\n") == 1
    assert "becomes ready once this is over: webui: Docker does not answer" in texts(
        loading, LOADING
    )
    # An agentless boot begins with a service that does not answer yet.
    agentless = replace(loading, node={"error": "connection refused", "boot_id": "b"})
    assert page_status(agentless, LOADING, GPU, may_wake=True)["problem"] == ""


def test_the_record_of_another_instance_is_not_the_configured_ones() -> None:
    cloud = GpuConfig(provider="aliyun", aliyun={"instance_id": "i-abc"})
    local = snap("ready", leases=(lease(),), machine="local", instance_id="local-main")
    full = full_status(local, [*LOADING, move(NOW - 1, "loading", "ready")], cloud)
    assert (full["phase"], full["last_wake"], full["cloud"]["state"]) == ("off", None, None)
    assert full["cloud"]["other"] == "local"
    assert len(full["leases"]) == 1
    history = [*LOADING, move(NOW - 3, "loading", "ready"), move(NOW - 1, "ready", "off")]
    since = str(int((NOW - 2) * 1000))
    now_cloud = snap("off", machine="aliyun i-abc", machine_since=since)
    assert full_status(now_cloud, history, cloud)["last_wake"] is None
    assert full_status(snap("off"), history, cloud)["last_wake"] is not None


def test_nobody_says_off_before_the_cloud_was_asked() -> None:
    fresh = Snapshot("main", NOW, {})
    first, *rest = explain(fresh, [])
    assert str(first) == "not known: the cloud has not been asked yet"
    assert "the cloud is asked first" in str(rest[-1])
    assert "once a controller runs" in str(rest[-1])
    assert str(explain(Snapshot("main", NOW, {"observed": "stopped"}), [])[0]).startswith("off")


def test_why_names_who_stopped_it() -> None:
    history = [
        move(NOW - 50, "loading", "ready", "ready"),
        event(NOW - 30, "down", actor="bob", cause="lunch", cut="0"),
        move(NOW - 29, "ready", "draining", "idle"),
        move(NOW - 25, "draining", "stopping", "idle"),
        move(NOW - 20, "stopping", "off", "stopped"),
    ]
    assert "bob (qwenctl down): lunch" in texts(snap("off"), history)
    idle = [entry for entry in history if entry.kind != "down"]
    said = texts(snap("off"), idle)
    assert "last stopped 25 s ago: nobody needed it any more" in said
    assert "stays off until somebody needs it" in said


def test_while_it_drains_the_down_is_the_cause() -> None:
    history = [
        move(NOW - 50, "loading", "ready", "ready"),
        event(NOW - 6, "down", actor="bob", cause="lunch", cut="0"),
        move(NOW - 5, "ready", "draining", "idle"),
    ]
    draining = snap("draining", cause="idle")
    assert "draining for 5.0 s: bob (qwenctl down): lunch" in texts(draining, history)
    assert full_status(draining, history, GPU)["cause_text"] == "bob (qwenctl down): lunch"
    # Somebody has needed it since: that use has run out, nobody took it away.
    again = [*history[:2], event(NOW - 5.5, "lease", name="request:eve"), history[2]]
    said = full_status(draining, again, GPU)["cause_text"]
    assert said == "nobody needed it any more"


def test_an_instance_that_the_cloud_takes_back() -> None:
    node = {
        "interrupted_at": str((NOW - 20) * 1000),
        "interruption": "stop",
        "interruption_ends": str((NOW + 100) * 1000),
    }
    history = [
        event(NOW - 9000, "lease", name="request:anna"),
        move(NOW - 8999, "off", "starting", "demand"),
        move(NOW - 8900, "loading", "ready", "ready"),
        event(NOW - 20, "interruption", action="stop"),
        move(NOW - 5, "ready", "draining", "spot_interruption"),
    ]
    draining = snap("draining", leases=(lease(),), cause="spot_interruption")
    leaving = replace(draining, node=node, leases=(replace(lease(), since=NOW - 9000),))

    page = page_status(leaving, history, GPU, may_wake=True)
    assert page["interruption"] == {"action": "stop", "seconds_left": 100.0}
    assert states(page).split()[0] == "request=active"
    assert "done" not in states(page)
    assert page["elapsed_seconds"] == 20  # not since anna first came, hours ago
    assert page["eta_seconds"] > 0
    assert page_status(draining, history, GPU, may_wake=True)["interruption"] is None

    said = texts(leaving, history)
    assert "the cloud takes this instance back in 1 min 40 s (spot interruption: stop)" in said
    assert "draining for 5.0 s: the cloud takes the instance back (spot interruption)" in said
    assert "it is stopped now, and started again" in said
    late = explain(leaving, history, NOW + 160)
    assert any("since 1 min ago" in str(reason) for reason in late)


def test_a_wake_by_unblock_has_words() -> None:
    history = [event(NOW - 9, "unblock", actor="bob"), move(NOW - 8, "off", "starting", "demand")]
    assert "last started 9.0 s ago: it was unblocked" in texts(snap("starting"), history)


def test_every_failure_code_has_words() -> None:
    import inspect
    import re

    from qwenctl.clouds.base import ProviderError
    from qwenctl.core import failures, lifecycle

    source = inspect.getsource(lifecycle)
    names = set(re.findall(r"failed\(\s*view, timings, now, failures\.(\w+)", source))
    assert len(names) > 5
    codes = {getattr(failures, name) for name in names}
    codes |= {kind.code for kind in ProviderError.__subclasses__()}
    for code in codes | frozenset(failures.MEANINGS):
        assert cause_words(code) != code.replace("_", " "), code


def test_a_message_of_several_lines() -> None:
    assert one_line("out of memory\n  File x") == "out of memory (more in `qwenctl logs`)"
    assert one_line("out of memory\n") == "out of memory"
    assert one_line("") == ""


def test_why_does_not_blame_an_earlier_down() -> None:
    history = [
        event(NOW - 90, "down", actor="bob"),
        move(NOW - 80, "off", "starting", "demand"),
        move(NOW - 70, "loading", "ready", "ready"),
        move(NOW - 30, "ready", "draining", "idle"),
        move(NOW - 25, "draining", "stopping", "idle"),
    ]
    assert "bob" not in texts(snap("stopping"), history)


def test_why_with_blocks_failures_and_a_silent_cloud() -> None:
    block = Lease("maintenance:bob", inf, "driver", "bob", NOW - 60)
    said = texts(snap("off", blocks=(block,), observe_error="no route"), [])
    assert "kept off by bob (qwenctl block): driver" in said
    assert "cannot be asked: no route" in said
    assert "stays off until it is unblocked" in said
    said = texts(snap("failed", leases=(lease(),), failure=FAILURE), [])
    assert "failed 5.0 s ago" in said
    assert "attempt 2 failed, the cloud has no such machine free: none free" in said
    assert "tried again in 20 s" in said


def test_why_of_one_found_running() -> None:
    history = [move(NOW - 9, "off", "booting", "found_running")]
    said = texts(snap("booting", leases=(lease("adopted:ctl"),)), history)
    assert "found running" in said


def test_every_kind_of_lease_has_words() -> None:
    kinds = ["request:a", "inflight:p", "busy:n", "pin:u", "prewarm:s", "adopted:c",
             "maintenance:u", "budget", "off-hours:s", "own:thing"]  # fmt: skip
    words = [lease_words(Lease(name, inf)) for name in kinds]
    assert len(set(words)) == len(kinds)
    assert all(words)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (65, "1 min 5 s"),
     (3600, "1 h"), (7800, "2 h 10 min"), (200_000, "2 d 7 h"), (-1, "0.0 s")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
