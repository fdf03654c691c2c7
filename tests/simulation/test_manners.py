"""Hours with a cloud of the worst manners: no work is cut, and nothing leaks.

``make test-long`` simulates 10,000 minutes instead of the few hundred that `make test` does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
import redis

from proxy.data.usage import UsageTracker
from qwenctl.control import controller
from qwenctl.core import lifecycle
from tests.simulation.manners import RudeWalk

MINUTES = float(os.environ.get("SIMULATED_MINUTES", "240"))

LIFE = 40.0
"""Simulated minutes of each walk."""


@pytest.mark.parametrize("seed", range(max(1, round(MINUTES / LIFE))))
def test_a_life_with_bad_manners(client: redis.Redis, deployment: str, seed: int) -> None:
    walk = RudeWalk(client, f"{deployment}-{seed}", seed)
    try:
        walk.run(LIFE)
        walk.settle()
        walk.check_history()
        assert len(walk.cloud.shown) > 2
        assert walk.cloud.starts
        assert walk.cloud.stops
    finally:
        walk.world.close()


def undoubted(patch: pytest.MonkeyPatch) -> None:
    """An instance that the cloud does not show is gone at once."""
    patch.setattr(lifecycle, "_in_doubt", lambda *_: False)


def uncounted(patch: pytest.MonkeyPatch) -> None:
    """Requests in flight are not counted, and hold no lease."""
    patch.setattr(UsageTracker, "_enter", lambda *_: None)
    patch.setattr(UsageTracker, "_leave", lambda *_: None)


def hasty(patch: pytest.MonkeyPatch) -> None:
    """A GPU is stopped before news of its use can have arrived."""
    known = controller.timings_of
    patch.setattr(controller, "timings_of", lambda *of: dataclasses.replace(known(*of), drain=0.3))


@pytest.mark.parametrize("without", [undoubted, uncounted, hasty])
def test_the_walks_find_a_rule_that_is_taken_away(
    client: redis.Redis,
    deployment: str,
    without: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch)
    for seed in range(40):
        walk = RudeWalk(client, f"{deployment}-{seed}", seed)
        try:
            walk.run(LIFE)
        except AssertionError:
            assert walk.world.cuts
            return
        finally:
            walk.world.close()
    raise AssertionError("all walks went well without the rule: they see nothing")
