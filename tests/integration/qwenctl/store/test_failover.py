"""Failover behind a TCP proxy: connections to a demoted master are given up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from qwenctl.config.deployment import Config
from qwenctl.errors import StoreUnavailable
from qwenctl.store.connect import connect, explained_errors
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import GPU
from tests.support.net import free_port
from tests.support.tcp_switch import TcpSwitch
from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import until


class Pair:
    """A master and another server, with a TCP proxy that leads to the master."""

    def __init__(self, old: ValkeyServer, new: ValkeyServer, front: TcpSwitch) -> None:
        self.old, self.new, self.front = old, new, front
        self.store = Store(
            connect(Config(redis_url=f"redis://127.0.0.1:{front.port}/0")), "failover"
        )

    def demote(self) -> None:
        """Make the old master a replica of the new one; existing connections stay open."""
        self.new.client().replicaof("NO", "ONE")
        self.old.client().replicaof("127.0.0.1", self.new.port)

    def write(self) -> None:
        self.store.pin(GPU, "pin:ada", 60, reason="up", actor="ada")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        ValkeyServer(port=free_port()) as old,
        ValkeyServer(port=free_port()) as new,
        TcpSwitch(old.port) as front,
    ):
        yield Pair(old, new, front)


def many_connections(store: Store, count: int = 8) -> None:
    """Have the pool hold several idle connections."""
    gate = threading.Barrier(count)

    def use() -> None:
        gate.wait()
        for _ in range(20):
            store.snapshot(GPU)

    threads = [threading.Thread(target=use) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_demoted_master_is_left_at_the_next_use(pair: Pair) -> None:
    pair.write()
    many_connections(pair.store)
    pair.demote()
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        pair.write()
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        pair.write()
    pair.front.upstream = pair.new.port
    for _ in range(10):
        pair.write()
        assert pair.store.snapshot(GPU).wanted
    assert pair.new.client().exists(pair.store.keys(GPU)[1])


def test_no_idle_connection_stays_at_the_demoted_master(pair: Pair) -> None:
    many_connections(pair.store)
    pair.demote()
    pair.front.upstream = pair.new.port
    with pytest.raises(StoreUnavailable):
        pair.write()
    many_connections(pair.store)
    for _ in range(10):
        pair.write()
    own = [row["addr"] for row in cast(Any, pair.old.client()).client_list(_type="normal")]
    assert len(own) == 1  # this very look


def test_news_are_heard_from_the_new_master(pair: Pair) -> None:
    news: queue.Queue[str] = queue.Queue()
    watcher = pair.store.watch([GPU], lambda _, what: news.put(what))
    try:
        assert news.get(timeout=5) == "resync"
        pair.write()
        assert news.get(timeout=5) == "lease"
        pair.demote()
        pair.front.upstream = pair.new.port
        pair.old.client().replicaof("NO", "ONE")  # what the new master says does not reach it
        pair.old.client().config_set("min-replicas-to-write", "1")
        with pytest.raises(StoreUnavailable, match="good replicas"):
            pair.write()
        until(lambda: news.get(timeout=5) == "resync")
        pair.write()
        assert news.get(timeout=5) == "lease"
    finally:
        watcher.stop()


def test_a_replica_without_its_master(pair: Pair) -> None:
    """It refuses reads too, with replica-serve-stale-data off."""
    pair.write()
    old = pair.old.client()
    old.config_set("replica-serve-stale-data", "no")
    old.replicaof("127.0.0.1", free_port())
    with pytest.raises(StoreUnavailable):
        pair.store.snapshot(GPU)
    pair.front.upstream = pair.new.port
    pair.write()


def test_another_server_is_seen_by_its_connection(pair: Pair) -> None:
    """A controller trusts what it reads no further back than this."""
    pair.write()
    before = pair.store.connected
    pair.write()
    assert pair.store.connected == before > 0
    pair.old.kill()
    pair.front.upstream = pair.new.port
    pair.write()
    assert pair.store.connected > before


def test_a_check_writes(pair: Pair) -> None:
    pair.store.check()
    pair.demote()
    pair.store.ping()
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        pair.store.check()


def test_a_wait_that_a_failover_ends(pair: Pair) -> None:
    ended: queue.Queue[Exception] = queue.Queue()

    def follow() -> None:
        try:
            pair.store.follow(GPU, "", 4.0)
        except Exception as error:
            ended.put(error)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: cast(Any, pair.old.client()).info("clients")["blocked_clients"] == 1)
    pair.demote()
    assert isinstance(ended.get(timeout=5), StoreUnavailable)
    thread.join()


@pytest.mark.parametrize(
    "text",
    [
        # As Redis 6 words the error of a command in a script.
        "Error running script (call to f_ab): @user_script:43: -READONLY You can't write against a r",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "BUSY Redis is busy running a script.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    ],
)
def test_what_counts_as_unavailable(text: str) -> None:
    with pytest.raises(StoreUnavailable), explained_errors("somewhere"):
        raise redis.exceptions.ResponseError(text)


def test_a_mistake_in_a_script_is_none() -> None:
    with pytest.raises(redis.exceptions.ResponseError), explained_errors("somewhere"):
        raise redis.exceptions.ResponseError("ERR user_script:3: attempt to index a nil value")


def test_watchers_reconnect_at_most_once_a_second(pair: Pair) -> None:
    news: queue.Queue[str] = queue.Queue()
    watcher = pair.store.watch([GPU], lambda _, what: news.put(what))
    try:
        assert news.get(timeout=5) == "resync"
        until_ = time.monotonic() + 1.5
        while time.monotonic() < until_:
            watcher.reconnect()
            time.sleep(0.01)
        assert news.qsize() <= 2
    finally:
        watcher.stop()
