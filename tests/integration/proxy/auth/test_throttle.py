"""Guesses of the password: limited by address, by network and in total, over all replicas."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from argon2 import PasswordHasher

from proxy.auth.password import MOST_WAITING, Busy, SharedPassword
from proxy.auth.throttle import (
    IN_ALL,
    KNOWN_MOST,
    KNOWN_SECONDS,
    PER_ADDRESS,
    PER_NETWORK,
    Throttle,
    Throttled,
    place_of,
)
from qwenctl.store.store import Store
from tests.support.virtual_time import VirtualClock

ROUND = 500


def let_in(throttle: Throttle, *clients: str) -> int:
    """How many attempts of these clients are counted, and not refused."""
    return sum(refused(throttle, client) == 0.0 for client in clients)


def refused(throttle: Throttle, client: str) -> float:
    """Count an attempt; for how long it is refused instead."""
    try:
        throttle.begin(client)
    except Throttled as error:
        return error.seconds
    return 0.0


def many(networks: int) -> list[str]:
    return [f"10.{number // 250}.{number % 250}.7" for number in range(networks)]


@pytest.mark.parametrize(
    ("clients", "most"),
    [
        (["192.0.2.1"] * ROUND, PER_ADDRESS),
        (["192.0.2.1", "::ffff:192.0.2.1"] * ROUND, PER_ADDRESS),
        ([f"192.0.2.{number % 256}" for number in range(ROUND)], PER_NETWORK),
        ([f"2001:db8::{number:x}" for number in range(ROUND)], PER_ADDRESS),
        ([f"2001:db8:0:{number:x}::1" for number in range(ROUND)], PER_NETWORK),
        ([f"2001:db8:{number:x}::1" for number in range(ROUND)], IN_ALL),
        (["unknown"] * ROUND, PER_ADDRESS),
        (many(ROUND), IN_ALL),
    ],
)
def test_as_many_at_once_and_as_many_a_minute(
    store: Store, clock: VirtualClock, clients: list[str], most: int
) -> None:
    throttle = Throttle(store)
    assert let_in(throttle, *clients) == most
    clock.advance(60)
    assert let_in(throttle, *clients) == most
    clock.advance(30)
    assert let_in(throttle, *clients) in (most // 2, most // 2 + 1)


def test_replicas_count_together(client: redis.Redis, deployment: str, clock: VirtualClock) -> None:
    replicas = [Throttle(Store(client, deployment, now=clock)) for _ in range(3)]
    counted = sum(let_in(replicas[number % 3], who) for number, who in enumerate(many(ROUND)))
    assert counted == IN_ALL


def test_a_refusal_says_when_to_come_again(store: Store, clock: VirtualClock) -> None:
    throttle = Throttle(store)
    let_in(throttle, *many(ROUND))
    wait = refused(throttle, "198.51.100.7")
    assert wait <= 60
    clock.advance(wait)
    throttle.check("198.51.100.7")
    assert refused(throttle, "198.51.100.7") == 0.0


def test_the_owner_gets_in_while_others_guess(store: Store) -> None:
    throttle, owner = Throttle(store), "198.51.100.7"
    throttle.begin(owner)
    throttle.succeeded(owner)
    let_in(throttle, *many(ROUND))
    assert refused(throttle, "203.0.113.1") > 0
    for neighbour in (owner, "198.51.100.8", "127.0.0.1", "::1"):
        assert refused(throttle, neighbour) == 0.0
    # These have limits of their own.
    assert let_in(throttle, *(f"198.51.100.{n % 256}" for n in range(ROUND))) < PER_NETWORK
    assert let_in(throttle, *["127.0.0.1"] * ROUND) < PER_ADDRESS


def test_a_network_is_not_known_for_ever(store: Store, clock: VirtualClock) -> None:
    throttle = Throttle(store)
    throttle.begin("198.51.100.7")
    throttle.succeeded("198.51.100.7")
    clock.advance(KNOWN_SECONDS + 1)
    let_in(throttle, *many(ROUND))
    assert refused(throttle, "198.51.100.7") > 0


def test_right_ones_do_not_count(store: Store) -> None:
    throttle = Throttle(store)
    for _ in range(2 * IN_ALL):
        throttle.begin("192.0.2.1")
        throttle.succeeded("192.0.2.1")
    assert let_in(throttle, *["192.0.2.1"] * ROUND) == PER_ADDRESS


def test_the_records_are_bounded(client: redis.Redis, store: Store, clock: VirtualClock) -> None:
    throttle = Throttle(store)
    for who in many(2 * KNOWN_MOST):
        throttle.succeeded(who)
        throttle.check(who)
    attempts, networks = store.keys("")[3:]
    assert client.zcard(networks) == KNOWN_MOST
    let_in(throttle, *(f"2001:db8:{number:x}::1" for number in range(ROUND)))
    assert int(client.zcard(attempts)) <= 2 * IN_ALL + 1  # type: ignore[arg-type]
    clock.advance(61)
    throttle.check("192.0.2.1")
    assert client.zcard(attempts) == 0


def test_a_clock_that_was_set_back_locks_nobody_out(client: redis.Redis, deployment: str) -> None:
    now = [7200.0]
    throttle = Throttle(Store(client, deployment, now=lambda: now[0]))
    let_in(throttle, *many(ROUND))
    now[0] -= 3600.0
    assert refused(throttle, "198.51.100.7") <= 60
    now[0] += 61.0
    assert refused(throttle, "198.51.100.7") == 0.0


def test_the_password(store: Store) -> None:
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    shared = SharedPassword(quick.hash("secret"), store)
    assert shared.check("secret", "192.0.2.1")
    for wrong in ("Secret", "", "secret "):
        assert not shared.check(wrong, "192.0.2.1")
    assert not SharedPassword("no hash", store).check("secret", "192.0.2.1")
    assert not shared.check("wrong", "192.0.2.1")
    with pytest.raises(Throttled):
        shared.check("secret", "192.0.2.1")


def test_only_few_passwords_wait_to_be_checked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, go_on, running = SharedPassword("", store), threading.Event(), []

    def verify(password: str) -> bool:
        running.append(password)
        return go_on.wait(10) and password == "right"

    monkeypatch.setattr(shared, "_verify", verify)

    def outcome(number: int) -> str:
        try:
            return str(shared.check("right", f"10.1.{number}.1"))
        except Busy:
            return "busy"

    with ThreadPoolExecutor(12) as pool:
        outcomes = [pool.submit(outcome, number) for number in range(12)]
        while sum(task.done() for task in outcomes) < 12 - MOST_WAITING:
            pass
        assert len(running) == 1  # one at a time
        go_on.set()
        said = [task.result() for task in outcomes]
    assert said.count("busy") == 12 - MOST_WAITING
    assert said.count("True") == MOST_WAITING


def test_places() -> None:
    assert place_of("fe80::1%eth0").network == place_of("fe80::2").network
    assert place_of("x" * 1000) == place_of("x" * 2000)  # bounded
