"""Use is counted and written back; without a real store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy.data import usage as module
from proxy.data.usage import INFLIGHT_TTL, UsageTracker
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Touch
from qwenctl.errors import StoreUnavailable

IDLE = 600.0


class Store:
    """Notes each write-back, and may refuse it."""

    def __init__(self) -> None:
        self.written: list[tuple[float, dict[str, Touch]]] = []
        self.phase = Phase.READY
        self.lost = False

    def touch(
        self, _gpu: str, _lease: str, ttl: float, touches: list[Touch], **_seen: Any
    ) -> Phase:
        if self.lost:
            raise StoreUnavailable("Redis cannot be reached")
        self.written.append((ttl, {touch.lease: touch for touch in touches}))
        return self.phase


@pytest.fixture
def store() -> Store:
    return Store()


def tracker(store: Store) -> UsageTracker:
    made: Any = store
    return UsageTracker(made, {"main": GpuConfig(idle_timeout=IDLE)}, "me")


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_a_request_is_in_flight_from_its_beginning_to_its_end(store: Store) -> None:
    async def go() -> None:
        made = tracker(store)
        with made.use("main", "request:ada"), made.use("main", "request:bob"):
            assert made.in_flight("main") == 2
            await made.recorded("main")
        assert made.in_flight("main") == 0
        await made.recorded("main")
        await made.stop()

    asyncio.run(go())
    (during, clients), (after, ended) = store.written
    assert (during, after) == (INFLIGHT_TTL, 0.0)
    assert set(clients) == set(ended) == {"request:ada", "request:bob"}
    assert {touch.ttl for touch in (*clients.values(), *ended.values())} == {IDLE}


def test_of_two_requests_of_a_client_the_younger_one_decides(store: Store) -> None:
    """Or a `down` between the two would end the lease of who came after it."""

    async def go() -> None:
        made, now = tracker(store), time.monotonic()
        made.touch("main", "request:ada", now - 100)
        made.touch("main", "request:ada", now - 1)
        made.touch("main", "request:ada", now - 50)
        await made.recorded("main")
        await made.stop()

    asyncio.run(go())
    assert store.written[0][1]["request:ada"].began_ago == pytest.approx(1, abs=0.9)


def test_what_could_not_be_written_is_written_later_and_hides_nothing_younger(
    store: Store,
) -> None:
    async def go() -> None:
        made, now = tracker(store), time.monotonic()
        store.lost = True
        made.touch("main", "request:ada", now - 100)
        made.touch("main", "request:bob", now - 100)

        def comes_meanwhile(*_: Any, **__: Any) -> None:
            made.touch("main", "request:ada", now - 1)
            raise StoreUnavailable("Redis cannot be reached")

        real, made._touch = made._touch, comes_meanwhile  # type: ignore[method-assign, assignment]
        assert await made.recorded("main") is None
        store.lost, made._touch = False, real  # type: ignore[method-assign]
        assert await made.recorded("main") is Phase.READY
        await made.stop()

    asyncio.run(go())
    [(_, written)] = store.written
    assert written["request:ada"].began_ago == pytest.approx(1, abs=0.9)
    assert written["request:bob"].began_ago == pytest.approx(100, abs=0.9)


@pytest.mark.parametrize(
    ("phase", "in_time"),
    [(Phase.READY, True), (Phase.DRAINING, True), (Phase.STOPPING, False), (Phase.OFF, False)],
)
def test_work_is_begun_only_before_a_stop(store: Store, phase: Phase, in_time: bool) -> None:
    async def go() -> None:
        made = tracker(store)
        store.phase = phase
        assert await made.recorded_before_stop("main") is in_time
        await made.stop()

    asyncio.run(go())


def test_without_the_store_nothing_can_be_stopped(store: Store) -> None:
    async def go() -> None:
        made = tracker(store)
        store.lost = True
        assert await made.recorded_before_stop("main")
        await made.stop()

    asyncio.run(go())


def test_a_request_that_another_data_plane_forwards_counts_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNSEEN", 0.05)

    async def go() -> None:
        made = tracker(store)
        store.phase = Phase.STOPPING
        assert not await made.begin_unseen("main", "request:ada")
        assert made.in_flight("main") == 0
        store.phase = Phase.READY
        assert await made.begin_unseen("main", "request:ada")
        assert made.in_flight("main") == 1
        await until(lambda: made.in_flight("main") == 0)
        await made.stop()

    asyncio.run(go())


def test_the_lease_of_a_long_request_is_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW", 0.05)
    monkeypatch.setattr(module, "WRITE_BACK", 0.05)

    async def go() -> None:
        made = tracker(store)
        made.start()
        with made.use("main", "request:ada"):
            await until(lambda: len(store.written) >= 4)
        await made.stop()

    asyncio.run(go())
    assert [ttl for ttl, _ in store.written[:4]] == [INFLIGHT_TTL] * 4
    assert store.written[-1][0] == 0.0
