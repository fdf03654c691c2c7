"""Which connections are let in, closed or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.http.capacity import (
    FULL,
    FULL_FROM_ONE,
    MOST,
    MOST_FROM_ONE,
    SPARE,
    Capacity,
    bearable,
)
from proxy.http.request import networks

HERE, THERE = "127.0.0.1", "192.0.2.7"


class Connection:
    """A connection that notes whether it was closed."""

    def __init__(self, number: int) -> None:
        self.number, self.dropped = number, False

    def drop(self) -> None:
        self.dropped = True

    def check(self, now: float) -> None: ...


def on_a_loop(test: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        async def go() -> None:
            test()

        asyncio.run(go())

    run.__name__ = test.__name__
    return run


def connect(capacity: Capacity, count: int, peer: str = HERE, *, busy: bool = False) -> list[Any]:
    made = [Connection(number) for number in range(count)]
    for one in made:
        assert capacity.add(one, peer) is None
        if busy:
            assert capacity.begin(one) is None
    return made


def dropped(connections: list[Any]) -> list[int]:
    return [one.number for one in connections if one.dropped]


@pytest.mark.parametrize(
    ("descriptors", "gpus", "most"),
    [(1024, 1, 414), (1024, 1000, 256), (20_000, 1, 9_902), (1 << 20, 1, MOST), (10, 1, 8)],
)
def test_half_of_what_the_reserve_leaves_is_for_clients(
    descriptors: int, gpus: int, most: int
) -> None:
    assert bearable(descriptors, gpus) == most


@on_a_loop
def test_the_oldest_idle_connection_makes_room() -> None:
    capacity = Capacity(100)
    first = connect(capacity, 100)
    assert dropped(first) == []
    connect(capacity, 3)
    assert dropped(first) == [0, 1, 2]
    assert len(capacity) == 100


@on_a_loop
def test_a_connection_is_as_old_as_its_last_request() -> None:
    capacity = Capacity(50)
    first = connect(capacity, 50)
    capacity.begin(first[0])
    capacity.begin(first[1])
    capacity.end(first[0])
    connect(capacity, 48)
    assert dropped(first) == list(range(2, 50)), "neither the busy one nor the one just used"
    connect(capacity, 1)
    assert first[0].dropped
    assert not first[1].dropped


@on_a_loop
def test_beyond_the_bound_requests_are_refused_but_those_of_nodes_and_probes() -> None:
    capacity = Capacity(50)
    busy = connect(capacity, 50, busy=True)
    late = connect(capacity, SPARE)
    assert [capacity.begin(one) for one in late[:3]] == [FULL] * 3
    urgent = connect(capacity, SPARE + 2)
    for one in urgent:
        assert capacity.begin(one, b"/_qwenctl/node/report?x") is None
    assert dropped(urgent) == [0, 1], "the oldest: messages of nodes take milliseconds"
    assert dropped(busy) == []
    capacity.end(busy[0])
    assert capacity.begin(connect(capacity, 1)[0]) is None
    assert len(capacity) <= 50 + 2 * SPARE


@on_a_loop
def test_one_address_has_a_bound_and_its_idle_connections_go_first() -> None:
    capacity = Capacity(10_000)
    others = connect(capacity, 10, "192.0.2.8")
    mine = connect(capacity, MOST_FROM_ONE, THERE)
    for one in mine[1:]:
        capacity.begin(one)
    connect(capacity, 1, THERE, busy=True)
    assert dropped(mine) == [0]
    refused = Connection(0)
    assert capacity.add(refused, THERE) == FULL_FROM_ONE
    assert dropped(others + mine[1:]) == []
    capacity.remove(refused)
    capacity.remove(mine[1])
    assert capacity.add(Connection(0), THERE) is None
    assert capacity.add(Connection(0), "192.0.2.8") is None


@pytest.mark.parametrize(
    ("peer", "counts"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("10.1.2.3", False),
        ("::ffff:10.1.2.3", False),
        ("", False),
    ],
)
def test_proxies_in_front_and_this_machine_speak_for_many(peer: str, counts: bool) -> None:
    async def go() -> None:
        capacity = Capacity(10_000, networks(["10.0.0.0/8"]))
        connect(capacity, MOST_FROM_ONE, peer, busy=True)
        assert capacity.add(Connection(0), peer) == (FULL_FROM_ONE if counts else None)

    asyncio.run(go())


@on_a_loop
def test_an_ipv6_customer_has_one_bound_for_all_his_addresses() -> None:
    capacity = Capacity(10_000)
    for number in range(MOST_FROM_ONE):
        one = Connection(number)
        assert capacity.add(one, f"2001:db8:0:7::{number:x}") is None
        capacity.begin(one)
    assert capacity.add(Connection(0), "2001:db8:0:7:ffff::1") == FULL_FROM_ONE
    assert capacity.add(Connection(0), "2001:db8:0:8::1") is None


@on_a_loop
def test_nothing_is_left_of_closed_connections() -> None:
    capacity = Capacity(100)
    made = connect(capacity, 20, THERE) + connect(capacity, 20, THERE, busy=True)
    successor = Connection(99)
    capacity.replace(made[30], successor)
    for one in [*made, successor, *made]:
        capacity.remove(one)
        capacity.end(one)
    assert len(capacity) == 0
    assert not capacity._from
    assert not capacity._network
