"""The store's watcher: changes, a broken connection, errors of its callers."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest
import redis

from qwenctl.core.snapshot import Lock
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import (
    GPU,
    P,
    demand,
    hello,
    move,
    report,
)
from tests.support.valkey_server import ValkeyServer

pytestmark = pytest.mark.fast


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


class TestWatch:
    @pytest.fixture
    def changes(self, store: Store) -> Iterator[queue.Queue[tuple[str, str]]]:
        changes: queue.Queue[tuple[str, str]] = queue.Queue()
        watcher = store.watch([GPU], lambda gpu, what: changes.put((gpu, what)))
        assert changes.get(timeout=5) == (GPU, "resync")
        yield changes
        watcher.stop()

    def test_news_travel_fast(
        self, store: Store, lock: Lock, changes: queue.Queue[tuple[str, str]]
    ) -> None:
        delays = []
        for client in range(20):
            began = time.monotonic()
            demand(store, str(client))
            assert changes.get(timeout=5) == (GPU, "lease")
            delays.append(time.monotonic() - began)
        assert sorted(delays)[10] < 0.05

    def test_what_changes(
        self, store: Store, lock: Lock, changes: queue.Queue[tuple[str, str]]
    ) -> None:
        move(store, lock, P.STARTING)
        store.record_call(GPU, lock, P.STARTING, "start")
        store.record_observation(GPU, lock, state="running")
        store.record_observation(GPU, lock, state="running")  # nothing new
        hello(store)
        report(store, "loading")
        report(store, "loading")  # nothing new
        store.block(GPU, "budget", None, reason="x", actor="x")
        store.unblock(GPU, actor="x")
        store.look(GPU, actor="x", cause="x")
        store.release_lock(GPU, lock)
        seen = [changes.get(timeout=5)[1] for _ in range(9)]
        assert seen == [
            "phase",
            "call",
            "observation",
            "hello",
            "report",
            "block",
            "block",
            "look",
            "lock",
        ]
        assert changes.empty()


def test_who_listens_is_counted(store: Store) -> None:
    assert store.listeners(GPU) == 0
    told: queue.Queue[str] = queue.Queue()
    watcher = store.watch([GPU], lambda _, what: told.put(what))
    assert told.get(timeout=5) == "resync"
    assert (store.listeners(GPU), store.listeners("other")) == (1, 0)
    watcher.stop()


def test_a_connection_that_breaks_is_taken_up_again() -> None:
    with ValkeyServer() as server:
        store = Store(server.client(), "x")
        changes: queue.Queue[str] = queue.Queue()
        watcher = store.watch([GPU], lambda _, what: changes.put(what))
        assert changes.get(timeout=5) == "resync"
        server.kill()
        with pytest.raises(StoreUnavailable, match=str(server.socket)):
            demand(store)
        server.start()
        assert changes.get(timeout=10) == "resync"
        demand(store)
        assert changes.get(timeout=5) == "lease"
        watcher.stop()
