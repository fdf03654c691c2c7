"""How old a snapshot may be that a request is decided by; without a real store."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from proxy.data import snapshot_cache as module
from proxy.data.snapshot_cache import FRESH, SnapshotCache
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable


class Store:
    """Gives a new snapshot each time; may be lost, or wait before it answers."""

    def __init__(self) -> None:
        self.count = 0
        self.lost = False
        self.asked = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def snapshot(self, gpu: str) -> Snapshot:
        self.count += 1
        self.asked.set()
        count = self.count
        if self.lost:
            raise StoreUnavailable("Redis cannot be reached")
        self.go.wait(10)
        return Snapshot(gpu, float(count), {})


@pytest.fixture
def store() -> Store:
    return Store()


def cache(store: Store) -> SnapshotCache:
    made: Any = store
    return SnapshotCache(made, ["main"])


def test_a_fresh_snapshot_is_used_and_an_old_one_is_not(store: Store) -> None:
    async def go() -> None:
        made = cache(store)
        view = await made.view("main")
        assert view.snapshot.now == 1.0
        view.fetched_at = time.monotonic() - FRESH + 0.3
        assert (await made.view("main")).snapshot.now == 1.0
        view.fetched_at = time.monotonic() - FRESH - 0.01
        assert (await made.view("main")).snapshot.now == 2.0
        await made.stop()

    asyncio.run(go())


def test_a_snapshot_is_as_old_as_its_request(store: Store) -> None:
    """The store may have read it right after it was asked, and the answer have come late."""

    async def go() -> None:
        made = cache(store)
        store.go.clear()
        refresh = asyncio.create_task(made.refresh("main"))
        await asyncio.sleep(0.2)
        store.go.set()
        await refresh
        assert made.peek("main").age >= 0.2
        await made.stop()

    asyncio.run(go())


def test_a_change_during_a_refresh_makes_another_one(store: Store) -> None:
    async def go() -> None:
        made = cache(store)
        store.go.clear()
        refresh = asyncio.create_task(made.refresh("main"))
        await asyncio.to_thread(store.asked.wait, 10)
        made._invalidate("main")
        store.go.set()
        await refresh
        running = made.peek("main").refreshing
        assert running
        await running
        assert made.peek("main").snapshot.now == 2.0
        await made.stop()

    asyncio.run(go())


def test_a_lost_store_leaves_what_is_known_and_is_said(store: Store) -> None:
    async def go() -> None:
        made = cache(store)
        view = await made.view("main")
        store.lost, view.fetched_at = True, float("-inf")
        assert (await made.view("main")).snapshot.now == 1.0
        assert view.lost == "Redis cannot be reached"
        asked = store.count
        await made.view("main")  # it has just failed: the next request does not wait for it
        assert store.count == asked
        store.lost, view.tried_at = False, float("-inf")
        assert not (await made.view("main")).lost
        assert view.snapshot.now > 1.0
        await made.stop()

    asyncio.run(go())


def test_a_store_that_does_not_answer_holds_no_request_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)

    async def go() -> None:
        made = cache(store)
        store.go.clear()
        view = await asyncio.wait_for(made.view("main"), 5)
        assert view.lost == "the store does not answer"
        store.go.set()
        await made.stop()

    asyncio.run(go())
