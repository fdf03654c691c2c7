"""The watcher outlives errors of those it calls."""

from __future__ import annotations

import queue

import pytest
import redis

from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store
from tests.simulation.world import GPU


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
