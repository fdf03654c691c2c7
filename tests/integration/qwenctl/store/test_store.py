"""The history and the connections of `qwenctl.store` on a real Valkey."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, cast

import pytest
import redis

from qwenctl.config.deployment import Config
from qwenctl.core.events import EventKind
from qwenctl.store.connect import connect
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import (
    GPU,
    P,
    bring,
    demand,
    leases,
    report,
    snap,
)
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast


class TestEvents:
    def test_note_and_look(self, store: Store, clock: VirtualClock) -> None:
        store.note(GPU, EventKind.FIRST_BYTE, actor="p0", start_seq="3")
        (event,) = store.events(GPU)
        assert (event.kind, event.fields) == ("first-byte", {"actor": "p0", "start_seq": "3"})
        store.look(GPU, actor="p0", cause="no connection")
        assert snap(store).time("look_at") == clock()

    def test_pages(self, store: Store) -> None:
        for number in range(5):
            store.note(GPU, EventKind.FIRST_BYTE, actor=f"p{number}")
        assert [e.actor for e in store.events(GPU, 2)] == ["p3", "p4"]
        first = store.events(GPU)[0].id
        assert [e.actor for e in store.events(GPU, 2, after=first)] == ["p1", "p2"]

    def test_follow(self, store: Store, client: redis.Redis) -> None:
        store.note(GPU, EventKind.HELLO, actor="x")
        last = store.events(GPU)[-1].id
        assert store.follow(GPU, last, 0.02) == []
        timer = threading.Timer(0.1, store.note, (GPU, EventKind.FIRST_BYTE), {"actor": "x"})
        timer.start()
        began = time.monotonic()
        assert [event.kind for event in store.follow(GPU, last, 3.0)] == ["first-byte"]
        assert time.monotonic() - began < 1.0
        timer.join()

    def test_the_history_is_bounded(self, store: Store, client: redis.Redis) -> None:
        pipeline = client.pipeline(transaction=False)
        for number in range(6000):
            pipeline.xadd(store.keys(GPU)[7], {"kind": str(number)})
        pipeline.execute()
        store.note(GPU, EventKind.FIRST_BYTE, actor="x")
        assert 5000 <= len(store.events(GPU, 100_000)) < 5200
        assert store.events(GPU)[-1].kind is EventKind.FIRST_BYTE


def test_scripts_survive_a_server_that_forgot_them(store: Store, client: redis.Redis) -> None:
    demand(store)
    client.script_flush()
    assert leases(store) == {"request:ada": 60}


@pytest.mark.slow
def test_a_cluster() -> None:
    """Everything of one GPU lies in one slot."""
    port = free_port()  # the cluster bus takes the port 10,000 above
    with ValkeyServer(port=port, cluster_enabled="yes") as server:
        plain = server.client()
        cast(Any, plain).execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + 10
        while plain.cluster("info")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        clock = VirtualClock()
        client = connect(Config(redis_url=f"redis+cluster://127.0.0.1:{port}"))
        store = Store(client, "default", now=clock)
        slots = {plain.cluster("keyslot", key) for key in store.keys(GPU)}
        assert len(slots) == 1
        assert slots != {plain.cluster("keyslot", store.keys("other")[0])}
        store.ping()
        lock, _, _ = store.acquire(GPU, "c0", 3600)
        assert lock
        bring(store, lock, P.READY)
        demand(store, inflight="inflight:p0")
        report(store, active=1, log=("line",))
        assert set(leases(store)) == {"request:ada", "inflight:p0", "busy:main"}
        assert store.log_lines(GPU) == ["line"]
        assert store.events(GPU)
        assert store.follow(GPU, "", 0.1)
        changes: queue.Queue[str] = queue.Queue()
        watcher = store.watch([GPU], lambda _, what: changes.put(what))
        assert changes.get(timeout=5) == "resync"
        demand(store, "bob")
        assert changes.get(timeout=5) == "lease"
        watcher.stop()
        store.close()
