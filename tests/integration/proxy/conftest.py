"""One running proxy for all tests of a module that only forward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from qwenctl.store.store import Store
from tests.integration.proxy.parts import FaultyStore
from tests.integration.proxy.running import (
    RunningProxy,
    gpu,
    running,
)
from tests.simulation.life import Life
from tests.support.virtual_time import VirtualClock


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy without access control, whose GPU is on. Tests leave it so."""
    with running(tmp_path_factory.mktemp("ready")) as proxy:
        proxy.wake()
        yield proxy


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy whose GPU is on; a rule refuses what lies under /admin."""
    rules = [{"activity": "refused", "path": "^/admin"}]
    gpus = {"main": gpu(preset="generic", rules=rules)}
    with running(tmp_path_factory.mktemp("on"), gpu=gpus) as proxy:
        proxy.wake()
        yield proxy


@pytest.fixture
def faulty(client: redis.Redis, deployment: str, clock: VirtualClock) -> FaultyStore:
    return FaultyStore(client, deployment, now=clock)


@pytest.fixture
def life(store: Store, clock: VirtualClock) -> Life:
    """The GPU that the parts are about; same deployment as ``faulty``."""
    return Life(store, clock)
