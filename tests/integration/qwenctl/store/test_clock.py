"""Steps of the server's clock: nothing lives on, and nothing ends, by a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from qwenctl.clouds.base import NoCapacity, ProviderError
from qwenctl.control.controller import Controller
from qwenctl.core.events import EventKind
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.store.clock import Reading, step_between
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import GPU, demand, hello, leases
from tests.simulation.life import Life
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast

HOUR = 3600.0


class Server:
    """The server's clock, which may step, while true time goes on."""

    def __init__(self, clock: VirtualClock, make: Callable[..., Store]) -> None:
        self.clock, self._make = clock, make
        self.off_by = 0.0

    def now(self) -> float:
        return self.clock() + self.off_by

    def process(self) -> Store:
        """The store as another process sees it."""
        return self._make(now=self.now, monotonic=self.clock)


@pytest.fixture
def server(client: redis.Redis, deployment: str, clock: VirtualClock) -> Server:
    return Server(clock, lambda **clocks: Store(client, deployment, **clocks))


@pytest.fixture
def store(server: Server) -> Store:
    return server.process()


def steps(store: Store) -> list[float]:
    events = store.events(GPU, 1000)
    return [float(e.fields["step"]) / 1000 for e in events if e.kind is EventKind.CLOCK]


def left(store: Store) -> dict[str, float]:
    """Return how long each lease and block still lasts."""
    now = store.snapshot(GPU)
    return {entry.name: round(entry.expiry - now.now, 3) for entry in (*now.leases, *now.blocks)}


@pytest.mark.parametrize("step", [-HOUR, -40.0, 40.0, HOUR, 86_400.0])
class TestStep:
    def test_leases_and_blocks_last_as_long_as_before(
        self, server: Server, store: Store, clock: VirtualClock, step: float
    ) -> None:
        store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")
        demand(store, inflight="inflight:p0")
        store.block(GPU, "maintenance:ada", 300, reason="x", actor="ada")
        store.block(GPU, "budget", None, reason="x", actor="x")
        before = left(store)
        server.off_by += step
        clock.advance(0.5)
        for name, seconds in left(store).items():
            assert seconds == pytest.approx(before[name] - 0.5, abs=1.6), name
        assert set(left(store)) == set(before)
        assert steps(store) == [pytest.approx(step, abs=1.6)]

    def test_many_processes_absorb_it_once(
        self, server: Server, clock: VirtualClock, step: float
    ) -> None:
        processes = [server.process() for _ in range(4)]
        processes[0].pin(GPU, "pin:ada", 900, reason="up", actor="ada")
        for process in processes:
            process.snapshot(GPU)
        server.off_by += step
        for process in processes * 2:
            clock.advance(0.3)
            assert left(process)["pin:ada"] == pytest.approx(900, abs=5)
        assert len(steps(processes[0])) == 1

    def test_a_dead_leader_is_succeeded_in_time_and_no_sooner(
        self, server: Server, store: Store, clock: VirtualClock, step: float
    ) -> None:
        other = server.process()
        other.snapshot(GPU)
        store.acquire(GPU, "dead", 10.0)
        server.off_by += step
        clock.advance(1.0)
        assert other.acquire(GPU, "next", 10.0)[0] is None
        clock.advance(11.0)
        assert other.acquire(GPU, "next", 10.0)[0] is not None

    def test_a_request_after_it_is_not_given_up(
        self, server: Server, store: Store, clock: VirtualClock, step: float
    ) -> None:
        store.snapshot(GPU)
        store.release(GPU, actor="ada")
        clock.advance(5.0)
        server.off_by += step
        assert not store.demand(GPU, "request:x", 60, reason="r", actor="x", began_ago=1.0).released

    def test_no_stop_passes_under_running_work(
        self, server: Server, store: Store, clock: VirtualClock, step: float
    ) -> None:
        life = Life(store, clock)
        life.wake()
        store.touch(GPU, "inflight:p", 30.0, [], actor="p")
        store.release(GPU, actor="ada")
        life.run(2)
        store.touch(GPU, "inflight:p", 30.0, [], actor="p")
        server.off_by += step
        for _ in range(20):  # its proxy is late, but not too late
            life.run(1)
        assert life.cloud.stops == []
        store.touch(GPU, "inflight:p", 0.0, [], actor="p")
        life.run(30)
        assert (life.phase(), life.cloud.state) == (Phase.OFF, Observed.STOPPED)

    def test_a_drain_takes_its_time(
        self, server: Server, store: Store, clock: VirtualClock, step: float
    ) -> None:
        life = Life(store, clock)
        life.wake()
        store.release(GPU, actor="ada")
        life.run(1)
        assert life.phase() is Phase.DRAINING
        server.off_by += step
        began = clock()
        life.run(30)
        assert 2.0 <= life.cloud.stops[0] - began <= 14.0


def test_silence_is_no_step(server: Server, store: Store, clock: VirtualClock) -> None:
    """Nobody runs a script for a day; a process that lived through it proves that it was a day."""
    store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")
    store.snapshot(GPU)
    clock.advance(86_400)
    assert left(store) == {}
    store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")
    clock.advance(86_400)
    assert left(server.process()) == {}
    assert steps(store) == []


def test_a_process_that_stood_still_proves_nothing(
    client: redis.Redis, deployment: str, server: Server, store: Store, clock: VirtualClock
) -> None:
    """A virtual machine was frozen for an hour; its monotonic clock did not go on."""
    frozen = VirtualClock()
    thawed = Store(client, deployment, now=server.now, monotonic=frozen)
    thawed.snapshot(GPU)
    for _ in range(3600):
        clock.advance(1.0)
        store.snapshot(GPU)
    store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")
    assert left(thawed)["pin:ada"] == 900
    assert steps(store) == []


def test_a_late_answer_is_no_step(server: Server, store: Store, clock: VirtualClock) -> None:
    """The server stood still for 20 s between our call and its script."""
    store.snapshot(GPU)
    delays = [20.0]
    call = store._call

    def late(script: str, gpu: str, latest: float | None, *args: Any) -> Any:
        if delays:
            clock.advance(delays.pop())
        return call(script, gpu, latest, *args)

    store._call = late  # type: ignore[method-assign]
    store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")
    assert left(store) == {"pin:ada": 900}
    assert steps(store) == []


def test_a_clock_that_steps_all_the_time_is_no_store(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.snapshot(GPU)
    monkeypatch.setattr(server, "now", lambda: 1e9 + server.clock() * 50)
    store._now = iter([server.clock() + 1e4 * n for n in range(1, 99)]).__next__
    with pytest.raises(StoreUnavailable, match="clock is not steady"):
        store.pin(GPU, "pin:ada", 900, reason="up", actor="ada")


def test_windows_of_schedules_stay_where_they_are(
    server: Server, store: Store, clock: VirtualClock
) -> None:
    now = store.snapshot(GPU).now
    for name in ("prewarm:morning", "off-hours:night"):
        store.schedule(GPU, name, now, now + 7200, reason="x", actor="x")
    server.off_by -= HOUR
    ends = {e.name: e.expiry for e in _entries(store.snapshot(GPU))}
    assert ends == {
        "prewarm:morning": pytest.approx(now + 7200),
        "off-hours:night": pytest.approx(now + 7200),
    }


def _entries(snapshot: Snapshot) -> list[Any]:
    return [*snapshot.leases, *snapshot.blocks]


def test_a_controller_looks_anew_after_a_step(
    server: Server, store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock)
    life.wake()
    life.run(20, wanted=True)
    server.off_by += HOUR
    life.run(5)
    assert life.now.time("observed_at") == pytest.approx(server.now(), abs=6)
    assert life.phase() is Phase.READY
    assert isinstance(life.controller, Controller)
    hello(store)
    assert "request:ada" in leases(store)


def test_a_step_during_a_refused_start_does_not_put_the_next_off(
    server: Server, store: Store, clock: VirtualClock
) -> None:
    life = Life(store, clock)

    def refuse() -> ProviderError:
        server.off_by -= HOUR
        life.cloud.refuse_start = lambda: None
        return NoCapacity("there is no such machine free")

    life.cloud.refuse_start = refuse
    life.run(life.gpu.timing.retry_max + 20, wanted=True)
    assert life.phase() is Phase.READY


def test_readings() -> None:
    first = Reading(100.0, 0, 10.0, 10.4)
    assert step_between(first, Reading(105.0, 0, 14.9, 15.2)) == 0.0
    assert step_between(first, Reading(110.0, 0, 10.5, 19.9)) == 0.0  # perhaps it took so long
    assert step_between(first, Reading(145.0, 0, 15.0, 15.4)) == pytest.approx(40.0)
