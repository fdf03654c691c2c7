"""Random walks of the whole control plane under virtual time, with everything going wrong at times.

Two proxies with the product's own data plane, two or three controllers that are frozen, killed and
cut off from Redis between any two instructions, a cloud that refuses, throttles, half accepts and
leaves things out, an instance that dies or is started and stopped by others, an agent that fails. A
walk is repeated by its seed.
"""

from __future__ import annotations

import pytest
import redis

from qwenctl.core.phase import TRANSITIONS, Phase
from tests.simulation.puppets import WithoutLockRule
from tests.simulation.walk import Walk


def walk(
    client: redis.Redis, deployment: str, seed: int, rounds: int, steps: int
) -> set[tuple[Phase, Phase]]:
    """Return the transitions that were seen."""
    run = Walk(client, f"{deployment}-{seed}", seed)
    try:
        for _ in range(rounds):
            run.troubled = True
            run.go(steps)
            run.settle()
        assert run.world.cloud.starts
        assert run.world.cloud.stops
        return run.check_history()
    finally:
        run.world.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_short_walk(client: redis.Redis, deployment: str, seed: int) -> None:
    walk(client, deployment, seed, rounds=2, steps=250)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_a_long_walk(client: redis.Redis, deployment: str, seed: int) -> None:
    walk(client, deployment, seed, rounds=5, steps=600)


def test_the_walks_see_every_phase_and_most_ways_between_them(
    client: redis.Redis, deployment: str
) -> None:
    seen: set[tuple[Phase, Phase]] = set()
    for seed in range(20, 60):
        seen |= walk(client, deployment, seed, rounds=2, steps=250)
        ways = sum(map(len, TRANSITIONS.values()))
        if {target for _, target in seen} == set(Phase) and len(seen) >= 0.6 * ways:
            return
    raise AssertionError(f"{len(seen)} of {ways} ways seen: {sorted(seen)}")


def test_the_walks_would_find_it(client: redis.Redis, deployment: str) -> None:
    """Without the rule of calls some walk sees a second start or a request cut."""
    for seed in range(7, 60):
        run = Walk(client, f"{deployment}-{seed}", seed, WithoutLockRule)
        try:
            run.go(1500)
        except AssertionError:
            assert run.world.cuts or run.world.cloud.second_starts
            return
        finally:
            run.world.close()
    raise AssertionError("all walks went well without the rule: they see nothing")
