"""Controller and lifecycle on a real store; cloud and agent are simulated."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from qwenctl.clouds.base import (
    Accepted,
    Conflict,
    Denied,
    NoCapacity,
    Observation,
    ProviderError,
    Transient,
)
from qwenctl.control.controller import Controller
from qwenctl.core.explain import explain
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Touch
from qwenctl.core.status import full_status, page_status
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store
from tests.simulation.life import IDLE, Life
from tests.simulation.puppets import GPU
from tests.support.virtual_time import VirtualClock


def test_work_reported_while_stopping_does_not_start_it_again(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, halt=20.0)
    life.node.active = 1
    life.wake()
    store.touch(GPU, "inflight:p", 30.0, [], actor="p")
    assert sorted(life.leases) == ["busy:main", "inflight:p", "request:ada"]
    store.release(GPU, actor="ada", force_stop=True)
    assert life.report(1) == "ok"  # between the order and the stop
    assert life.step() is Phase.STOPPING
    assert life.cloud.stops
    assert life.leases == []
    for _ in range(10):
        clock.advance(1.0)
        assert life.report(1) == "ok"
        store.touch(GPU, "inflight:p", 30.0, [Touch("request:ada", IDLE, 100.0)], actor="p")
        assert life.leases == []
        life.step()
    life.run(120)
    assert life.phase() is Phase.OFF
    assert len(life.cloud.starts) == 1


def test_a_service_that_crashes_now_and_then_does_not_keep_the_gpu_on(life: Life) -> None:
    life.wake()
    began = life.clock()
    while life.phase() is not Phase.OFF and life.clock() - began < 5 * IDLE:
        life.run(IDLE / 2 - 5)
        life.node.mood = "stuck"
        life.run(5)
        life.node.mood = "well"
    assert Phase.LOADING in life.phases  # it did crash and come back
    assert life.phase() is Phase.OFF
    assert life.cloud.stops[0] - began <= IDLE + 20
    assert len(life.cloud.starts) == 1


def lose(life: Life) -> Failure:
    """The instance dies; return the failure once that is sure."""
    life.cloud.die()
    while life.phase() is not Phase.FAILED:
        life.run(1, wanted=True)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "instance_lost"
    return failure


GONE = [Observed.STOPPED, Observed.ABSENT]


def lie(life: Life, state: Observed, seconds: float, **run: bool) -> None:
    """Let the cloud say so at each look."""
    end = life.clock() + seconds
    while life.clock() < end:
        life.cloud.lie = state
        life.store.look(GPU, actor="test", cause="test")
        life.run(1, **run)
    life.cloud.lie = None


@pytest.mark.parametrize("found_running", ["adopt", "stop", "ignore"])
@pytest.mark.parametrize("working", [0, 1])
@pytest.mark.parametrize("state", GONE)
def test_the_cloud_is_not_believed_against_an_agent_that_reports(
    life: Life, state: Observed, working: int, found_running: Any
) -> None:
    gpu = life.gpu.model_copy(update={"found_running": found_running})
    life.controller = Controller(GPU, gpu, life.store, life.cloud, monotonic=life.clock)
    life.node.active = working
    life.wake()
    life.run(100, wanted=True)
    boot, address = life.now.node["boot_id"], life.now.address
    lie(life, state, 1, wanted=True)  # once
    life.run(20, wanted=True)
    lie(life, state, 600, wanted=True)  # a permission that is too narrow, say
    assert {"state", "cloud"} <= {reason.topic for reason in explain(life.now, [])}
    assert "which its agent or its work contradicts" in str([*explain(life.now, [])])
    assert life.now.address == address
    life.run(100, wanted=True)
    assert set(life.phases) == {Phase.READY}
    assert life.now.node["boot_id"] == boot
    assert life.report(working) == "ok"
    assert life.cloud.stops == []
    assert life.cloud.boots == 1


def test_a_block_that_waits_for_the_work_does_so_whatever_the_cloud_says(life: Life) -> None:
    life.node.active = 1
    life.wake()
    life.run(100)
    life.store.block(GPU, "off-hours:nights", 1e6, reason="nights", actor="schedule")
    lie(life, Observed.ABSENT, 60)
    life.run(60)
    assert set(life.phases[-100:]) == {Phase.DRAINING}
    assert life.cloud.stops == []
    life.node.active = 0
    life.run(60)
    assert life.phase() is Phase.OFF
    assert len(life.cloud.stops) == 1


@pytest.mark.parametrize("state", GONE)
def test_an_instance_that_is_really_gone_is_replaced_soon(life: Life, state: Observed) -> None:
    life.wake()
    life.run(100, wanted=True)
    life.cloud.die()
    began = life.clock()
    while life.cloud.boots == 1 and life.clock() < began + 100:
        life.run(1, wanted=True)
    # The agent's silence, and looks that agree.
    assert life.clock() - began < 4 * life.gpu.timing.heartbeat + 15


def test_a_stop_is_not_believed_while_the_agent_reports(life: Life) -> None:
    life.wake()
    life.store.release(GPU, actor="ada")
    stops: list[float] = []
    down = [True]

    def refuse() -> ProviderError | None:
        stops.append(life.clock())
        return Transient("accepted, perhaps") if down else None

    life.cloud.refuse_stop = refuse
    while not stops:
        life.run(1)
    lie(life, Observed.STOPPED, 45)
    assert Phase.OFF not in life.phases, "it runs, and its agent says so"
    assert len(stops) > 1
    down.clear()
    life.run(60)
    assert life.phase() is Phase.OFF
    assert life.cloud.state is Observed.STOPPED


def test_a_silent_agent_and_stale_answers_do_not_end_running_work(life: Life) -> None:
    """A proxy still forwards; the agent cannot reach any proxy for a minute."""
    gpu = life.gpu.model_copy(update={"found_running": "stop"})
    life.controller = Controller(GPU, gpu, life.store, life.cloud, monotonic=life.clock)
    life.wake()
    life.run(100, wanted=True)
    life.store.release(GPU, actor="ada")  # `down`: it drains after the work
    for second in range(180):
        life.store.touch(GPU, "inflight:p", 30.0, [], actor="p")
        if 30 <= second < 40:
            life.cloud.lie = Observed.STOPPED
            life.store.look(GPU, actor="test", cause="test")
        life.run(1, speaks=False)
    assert set(life.phases[-170:]) <= {Phase.READY, Phase.DRAINING}
    assert life.cloud.stops == []


def test_a_failed_connection_to_what_is_gone_shortens_the_doubt(life: Life) -> None:
    life.wake()
    life.run(100, wanted=True)
    life.cloud.die()
    began = life.clock()
    while life.cloud.boots == 1 and life.clock() < began + 100:
        life.store.look(GPU, actor="p", cause="no connection to the node")
        life.run(1, wanted=True)
    # One and a half heartbeats, and the pause after a lost instance.
    assert life.clock() - began < 1.5 * life.gpu.timing.heartbeat + 4 + life.gpu.timing.retry


def test_a_successor_right_after_a_stop_believes_its_end(life: Life) -> None:
    life.wake()
    life.run(60)
    life.store.release(GPU, actor="ada")
    while not life.cloud.stops:
        life.run(1)
    life.controller._give_up_lock()
    life.controller = Controller(GPU, life.gpu, life.store, life.cloud, monotonic=life.clock)
    life.run(4)
    assert life.phase() is Phase.OFF
    assert len(life.cloud.stops) == 1


def test_a_successor_believes_a_stop_whose_call_was_not_recorded(life: Life) -> None:
    """The leader died between the call and its record; the instance has stopped meanwhile."""
    life.wake()
    life.run(60)
    life.store.release(GPU, actor="ada")
    while life.phase() is not Phase.DRAINING:
        life.run(1)
    stop = life.cloud.stop

    def die() -> Accepted:
        stop()
        raise KeyboardInterrupt

    life.cloud.stop = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        life.run(30)
    life.cloud.stop = stop  # type: ignore[method-assign]
    assert life.phase() is Phase.STOPPING
    life.controller._give_up_lock()
    life.controller = Controller(GPU, life.gpu, life.store, life.cloud, monotonic=life.clock)
    life.run(1.5 * life.gpu.timing.heartbeat + 2)
    assert life.phase() is Phase.OFF
    assert len(life.cloud.stops) == 1


def test_a_bad_instance_that_the_cloud_leaves_out_is_stopped_all_the_same(life: Life) -> None:
    life.wake()
    life.run(100)
    life.node.mood = "broken"
    lie(life, Observed.ABSENT, 60)
    assert life.cloud.stops
    assert life.cloud.state is Observed.STOPPED


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("odd\n\x1b[31m"),
        SystemExit(3),
        "a string",
        None,
        OSError(24, "Too many open files"),
        Observation("stopped"),  # type: ignore[arg-type]
        Observation(None),  # type: ignore[arg-type]
    ],
)
def test_a_provider_that_breaks_is_seen_and_stops_nothing_else(life: Life, fault: Any) -> None:
    """A third party's may do anything."""

    def describe() -> Any:
        if isinstance(fault, BaseException):
            raise fault
        return fault

    broken = type("Broken", (), {"describe": staticmethod(describe)})
    describes = life.cloud.describe
    life.cloud.describe = broken.describe  # type: ignore[method-assign]
    life.demand()
    life.run(30)
    why = str([*explain(life.now, [])])
    assert "the cloud cannot be asked: the provider local broke: " in why
    assert "\x1b" not in life.now.state["observe_error"]
    life.cloud.describe = describes  # type: ignore[method-assign]
    life.run(60, wanted=True)
    assert life.phase() is Phase.READY


def test_a_dead_boots_word_makes_nothing_ready(life: Life) -> None:
    life.wake()
    lose(life)
    life.phases.clear()
    assert life.now.node == {}
    life.cloud.start_outside()
    life.look()
    life.run(30, speaks=False)
    assert life.phase() is Phase.BOOTING
    assert not {Phase.LOADING, Phase.READY} & set(life.phases)
    life.run(5, wanted=True)
    assert life.phase() is Phase.READY  # now the new boot has spoken


def test_a_start_that_is_never_possible(life: Life) -> None:
    asked: list[float] = []

    def refuse() -> ProviderError:
        asked.append(life.clock())
        return Conflict("the instance is busy")

    life.cloud.refuse_start = refuse
    life.store.pin(GPU, "pin:ada", 1e6, reason="up", actor="ada")
    end = life.clock() + 1000
    while life.clock() < end and life.phase() is not Phase.FAILED:
        life.clock.advance(max(0.005, life.controller.step()))
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "start_timeout"
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert min(pauses) >= life.cloud.observe_interval
    assert len(asked) <= 1000 / life.cloud.observe_interval


def test_an_agent_that_starts_anew_in_the_same_boot(life: Life) -> None:
    life.wake()
    boot = life.now.node["boot_id"]
    verdict, seq = life.store.hello(Hello(gpu=GPU, boot_id=boot), "nonce-of-the-second-hello")
    assert (verdict, seq) == ("ok", life.now.start_seq)
    assert life.step() is Phase.LOADING  # what runs now, only its report can say
    life.run(5)
    assert life.phase() is Phase.READY
    assert life.cloud.stops == []


def test_a_request_from_before_a_down_does_not_undo_it(life: Life) -> None:
    life.wake()
    life.clock.advance(10.0)
    life.store.release(GPU, actor="ada")
    life.clock.advance(5.0)
    old = life.store.demand(GPU, "request:ada", IDLE, reason="held", actor="ada", began_ago=6.0)
    assert old.released
    assert life.leases == []
    new = life.store.demand(GPU, "request:ada", IDLE, reason="new", actor="ada", began_ago=4.0)
    assert not new.released
    assert life.leases == ["request:ada"]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_success_ends_an_old_failure(store: Store, clock: VirtualClock, wanted: bool) -> None:
    life = Life(store, clock, halt=5.0)
    refusals = [NoCapacity("none left")]
    life.cloud.refuse_start = lambda: refusals.pop() if refusals else None
    life.demand()
    life.run(5)
    assert life.phase() is Phase.FAILED
    life.run(3600, wanted=True)
    assert life.phase() is Phase.READY
    events = life.store.events(GPU, 1000)
    assert page_status(life.now, events, life.gpu, may_wake=True)["failure"] is None
    assert not [r for r in explain(life.now, events) if r.topic == "failure"]
    life.phases.clear()
    life.cloud.stop_outside()
    if not wanted:
        life.store.release(GPU, actor="ada")
    life.look()
    life.run(30, wanted=wanted)
    assert Phase.FAILED not in life.phases
    assert life.phase() is (Phase.READY if wanted else Phase.OFF)
    assert len(life.cloud.starts) == (2 if wanted else 1)
    if wanted:  # the next failure is the first one again
        assert lose(life).attempts == 1


def test_down_now_while_starting_does_not_cut_what_is_asked_for_later(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, boot=30.0)
    life.demand()
    life.step()
    assert life.phase() is Phase.STARTING
    assert life.cloud.starts
    store.release(GPU, actor="ada", force_stop=True)
    life.demand("bob")
    life.run(60)
    assert life.phase() is Phase.READY
    assert life.cloud.stops == []
    assert Phase.STOPPING not in life.phases


def test_a_refused_stop_can_be_seen(life: Life) -> None:
    life.wake()
    life.cloud.refuse_stop = lambda: Denied("ecs:StopInstance is not granted")
    life.store.release(GPU, actor="ada")
    life.run(30)
    assert life.phase() is Phase.STOPPING
    events = life.store.events(GPU, 1000)
    shown = json.loads(json.dumps(full_status(life.now, events, life.gpu)))
    assert "ecs:StopInstance is not granted" in shown["cloud"]["error"]
    life.cloud.refuse_stop = lambda: None
    life.run(60)
    assert life.phase() is Phase.OFF
    assert full_status(life.now, events, life.gpu)["cloud"]["error"] == ""


def test_a_services_log_is_for_the_command_line_only(life: Life) -> None:
    life.node.mood = "stuck"
    life.demand()
    message = "the service crashes\nTraceback (most recent call last):\nKeyError: 'API_TOKEN=abc'"
    life.run(3)
    boot = life.now.node
    report = Report(
        gpu=GPU,
        boot_id=boot["boot_id"],
        start_seq=int(boot["start_seq"]),
        state="failed",
        error=message,
    )
    life.store.report(report, "nonce-of-the-failure", heartbeat=5.0)
    life.run(3, speaks=False)
    failure = life.now.failure
    assert failure is not None
    assert failure.message == message
    events = life.store.events(GPU, 1000)
    page = page_status(life.now, events, life.gpu, may_wake=True)
    assert page["failure"]["message"] == "the service crashes"
    assert "API_TOKEN" not in json.dumps(page)
    # `why` leads to the log, which only the command line shows.
    assert any("qwenctl logs" in reason.text for reason in explain(life.now, events))
    assert any("API_TOKEN=abc" in event.fields.get("failure", "") for event in events)


def test_a_controller_that_comes_back_does_not_take_a_well_node_for_dead(
    store: Store, clock: VirtualClock
) -> None:
    """While no proxy ran, the agent could reach nobody; it has not had the time to report yet."""
    life = Life(store, clock)
    life.wake()
    clock.advance(life.gpu.timing.node_lost + 30.0)  # within the dead-man's time
    life.controller = Controller(GPU, life.gpu, store, life.cloud, monotonic=clock)
    life.run(30)
    assert set(life.phases) == {Phase.READY}
    assert life.cloud.stops == []
    # One that stays silent is given up after the same time as ever.
    life.run(life.gpu.timing.node_lost + 60.0, speaks=False, wanted=True)
    assert Phase.FAILED in life.phases


@pytest.mark.parametrize("reached", [Phase.BOOTING, Phase.LOADING])
def test_a_controller_that_comes_back_gives_a_boot_its_time(
    store: Store, clock: VirtualClock, reached: Phase
) -> None:
    """While no proxy ran, the agent could reach nobody: its time begins with the new one."""
    life = Life(store, clock, boot=1.0)
    life.node.load = 100.0
    life.demand()
    while life.step() is not reached:
        clock.advance(1.0)
        if reached is Phase.LOADING and life.phase() is Phase.BOOTING:
            life.node.speak()
    assert life.phase() is reached
    life.store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    clock.advance(life.gpu.timing.boot + life.gpu.timing.load)
    life.controller = Controller(GPU, life.gpu, store, life.cloud, monotonic=clock)
    life.phases.clear()
    life.run(120.0)
    assert life.phase() is Phase.READY
    assert Phase.FAILED not in life.phases
    assert life.cloud.stops == []
    # One that never speaks is given up after the same time as ever.
    life.cloud.die()
    life.run(60.0, speaks=False)
    life.run(life.gpu.timing.boot + 60.0, speaks=False)
    assert "agent_silent" in [e.fields.get("cause") for e in store.events(GPU, 1000)]


def test_the_observer_hears_of_steps_and_calls(life: Life) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[str] = []
            self.calls: list[tuple[str, str]] = []

        def stepped(self, gpu: str, step: str, seconds: float) -> None:
            assert gpu == GPU
            assert seconds >= 0
            self.steps.append(step)

        def called_cloud(self, gpu: str, action: str, outcome: str, seconds: float) -> None:
            assert gpu == GPU
            assert seconds >= 0
            self.calls.append((action, outcome))

        def admitted(self, gpu: str, decision: str) -> None: ...

        def forwarded(self, gpu: str, status: int, seconds: float) -> None: ...

    recorder = Recorder()
    life.controller._observer = recorder
    life.cloud.refuse_start = lambda: NoCapacity("none left")
    life.store.pin(GPU, "pin:ada", 1e6, reason="up", actor="ada")
    life.step()
    assert recorder.calls[:2] == [("describe", "ok"), ("start", "no_capacity")]
    life.cloud.refuse_start = lambda: None
    life.run(200)
    assert ("start", "ok") in recorder.calls
    assert set(recorder.steps) == {"observe", "move", "call", "wait"}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_service_that_cannot_run_is_stopped_once_an_attempt(life: Life, wanted: bool) -> None:
    """The last report of what has been stopped is no sign of life."""
    life.node.mood = "broken"
    life.demand()
    while life.phase() is not Phase.FAILED:
        life.run(1)
    if not wanted:
        life.store.release(GPU, actor="ada")
    life.phases.clear()
    began = len(life.store.events(GPU))
    life.run(9, wanted=wanted)
    moves = [
        (event.fields["from"], event.fields["to"])
        for event in life.store.events(GPU)[began:]
        if event.kind == "transition"
    ]
    ended = [] if wanted else [("failed", "off")]
    assert moves == [("failed", "stopping"), ("stopping", "failed"), *ended]
    assert len(life.cloud.stops) == 1
