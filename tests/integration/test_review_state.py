"""Faults that a review found in store, lifecycle and controller: each happens again, to no effect.

The real store on a real Valkey and the real controller, under virtual time; cloud and agent are
those of the simulation.
"""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from qwenctl.clouds.base import Conflict, Denied, NoCapacity, Observation, ProviderError
from qwenctl.clouds.fallback import Fallback
from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.control.controller import Controller
from qwenctl.core.explain import explain
from qwenctl.core.lifecycle import Observed, Phase
from qwenctl.core.snapshot import Touch
from qwenctl.core.status import full_status, page_status
from qwenctl.errors import ConfigError, StoreAuthError, StoreUnavailable
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.connect import connect
from qwenctl.store.store import Store
from tests.simulation.life import IDLE, Life
from tests.simulation.world import GPU, Cloud
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock


@pytest.fixture
def life(store: Store, clock: VirtualClock) -> Life:
    return Life(store, clock)


def test_work_reported_while_stopping_does_not_start_it_again(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, halt=20.0)
    life.node.active = 1
    life.wake()
    store.touch(GPU, "inflight:p", 30.0, [], actor="p")
    assert sorted(life.leases) == ["busy:main", "inflight:p", "request:ada"]
    store.release(GPU, actor="ada", cut=True)
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


@pytest.mark.parametrize("working", [0, 1])
def test_one_wrong_reading_of_a_healthy_instance(life: Life, working: int) -> None:
    life.node.active = working
    life.wake()
    life.run(100, wanted=True)
    boot = life.now.node["boot_id"]
    life.cloud.lie = Observed.STOPPED
    life.look()
    life.run(20, wanted=True)
    assert any(not phase.serves for phase in life.phases)  # the reading was believed
    assert life.phase() is Phase.READY
    assert life.now.node["boot_id"] == boot
    assert life.report(working) == "ok"
    assert life.cloud.stops == []
    assert life.cloud.boots == 1


def test_a_dead_boots_word_makes_nothing_ready(life: Life) -> None:
    life.wake()
    life.cloud.die()
    assert life.look() is Phase.FAILED
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "instance_lost"
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
        life.cloud.die()
        life.look()
        failure = life.now.failure
        assert failure is not None
        assert (failure.code, failure.attempts) == ("instance_lost", 1)


def test_down_now_while_starting_does_not_cut_what_is_asked_for_later(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, boot=30.0)
    life.demand()
    life.step()
    assert life.phase() is Phase.STARTING
    assert life.cloud.starts
    store.release(GPU, actor="ada", cut=True)
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


SECRET = "s3cret-of-the-store"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/x@127.0.0.1:6379",
        f"redis://:{SECRET}@127.0.0.1:{SECRET}",
        f"redis://u:{SECRET}#@127.0.0.1:port",
        f"redis+sentinel://:p@127.0.0.1:{SECRET}/mymaster",
        f"redis+sentinel://:p@127.0.0.1:1/mymaster/{SECRET}",
        f"redis+cluster://:{SECRET}@127.0.0.1:{SECRET}",
        f"redis://[:{SECRET}@x",
        f"htt://:{SECRET}@127.0.0.1",
        f"{SECRET}@127.0.0.1:6379",
    ],
)
def test_a_malformed_url_is_not_quoted(url: str, tmp_path: Path) -> None:
    file = tmp_path / "qwenctl.toml"
    file.write_text(f"redis_url = {json.dumps(url)}\n")
    with pytest.raises(ConfigError) as caught:
        connect(load_config(str(file), env={}))
    assert SECRET not in str(caught.value)


def test_no_password_of_the_store_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    port = free_port()
    urls = [
        f"redis://:{SECRET}@127.0.0.1:{port}",
        f"redis://someone:{SECRET}@127.0.0.1:{port}",
        f"redis+cluster://:{SECRET}@127.0.0.1:{port}",
        f"redis+sentinel://:{SECRET}@127.0.0.1:{port}/mymaster",
    ]
    told: list[str] = []

    def try_all() -> None:
        for url in urls:
            try:
                store = Store(connect(Config(redis_url=url)), "test")
                told.append(store.place)
                store.ping()
            except (StoreUnavailable, StoreAuthError, ConfigError) as error:
                told.append(str(error))

    try_all()
    with ValkeyServer(port=port, requirepass="another one"):
        try_all()
    assert len(told) >= 2 * len(urls)
    assert SECRET not in "\n".join(told)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("value", ["nginx", "10.0.0.0/99", ""])
def test_a_trusted_proxy_that_is_no_address(tmp_path: Path, value: str) -> None:
    file = tmp_path / "qwenctl.toml"
    file.write_text(f'[proxy]\ntrusted_proxies = ["{value}"]\n')
    with pytest.raises(ConfigError, match="trusted_proxies"):
        load_config(str(file), env={})


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), RuntimeError("no loop"), KeyError(1)])
def test_who_watches_survives_what_is_told(
    client: redis.Redis, store: Store, error: Exception
) -> None:
    news: queue.Queue[str] = queue.Queue()
    errors: list[Exception] = [error, error]

    def on_change(_gpu: str, what: str) -> None:
        if errors:
            raise errors.pop()
        news.put(what)

    watcher = store.watch([GPU], on_change)
    try:
        assert news.get(timeout=5) == "resync"
        assert not errors
        store.look(GPU, actor="a", cause="b")
        assert news.get(timeout=5) == "look"
    finally:
        watcher.stop()


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


class Named(Cloud):
    """One of several instances."""

    name = ""

    def describe(self) -> Observation:
        return replace(super().describe(), instance_id=self.name)


def test_a_surplus_instance_that_starts_is_stopped_soon_after_it_runs(
    store: Store, clock: VirtualClock
) -> None:
    """Not only at the next slow look: until then two are billed."""
    life = Life(store, clock)
    serving, other = Named(clock), Named(clock, boot=20.0)
    serving.name, other.name = "i-1", "i-2"
    life.node.cloud = serving
    provider = Fallback([("one", serving), ("two", other)], monotonic=clock)
    life.controller = Controller(GPU, life.gpu, store, provider, monotonic=clock)
    store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    life.run(90.0)
    assert life.phase() is Phase.READY
    other.start_outside()
    ran_at = clock() + 20.0
    life.run(5.0)
    store.look(GPU, actor="test", cause="test")  # it is seen while it starts
    life.run(80.0)
    assert len(other.stops) == 1
    assert ran_at <= other.stops[0] <= ran_at + 16.0
    assert life.phase() is Phase.READY
    assert serving.stops == []


def test_a_market_that_takes_each_boot_back_soon_is_asked_less_and_less(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock, boot=5.0, halt=5.0)
    store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    for _ in range(1800):
        life.node.interrupted = life.node.interrupted or life.phase() is Phase.READY
        life.run(1.0)
    pauses = [round(b - a) for a, b in pairwise(life.cloud.starts)]
    assert pauses[0] < 60  # the first counts for nothing
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[-1] >= life.gpu.timing.retry_max
    assert len(pauses) < 12
    # A good while of use, and it is as if nothing had been.
    life.run(400.0)
    assert life.phase() is Phase.READY
    life.run(600.0)
    life.node.interrupted = True
    began = clock()
    life.run(60.0)
    assert life.phase() is Phase.READY
    assert began < life.cloud.starts[-1] < began + 60
    assert life.now.failure is None


def test_the_fallback_goes_first_when_the_preferred_one_is_taken_back_again_and_again(
    store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock)
    spot, other = Named(clock), Named(clock)
    spot.name, other.name = "i-1", "i-2"
    life.node.cloud = spot
    provider = Fallback([("spot", spot), ("on-demand", other)], monotonic=clock)
    life.controller = Controller(GPU, life.gpu, store, provider, monotonic=clock)
    store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    for _ in range(300):
        life.node.interrupted = life.node.interrupted or life.phase() is Phase.READY
        life.run(1.0)
    assert (len(spot.starts), len(other.starts)) == (2, 1)
    assert other.state is Observed.RUNNING
