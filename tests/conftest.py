"""What all tests share: one real Valkey server a run, a store in it, and a clock of its own."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings

from qwenctl.store.store import Store
from tests.support.paths import ROOT
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock

# A test is no slower for a machine that stood still for a moment.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

# Shells start background jobs with SIGINT ignored, which every process of a test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FAST = ("unit", "simulation")
"""Folders whose tests need no process but Valkey; other files say ``pytestmark = pytest.mark.fast``."""

_deployments = (f"test-{number}" for number in itertools.count())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as fast what stands in a folder of fast tests."""
    fast = tuple(ROOT / "tests" / path for path in FAST)
    for item in items:
        if any(item.path.is_relative_to(path) for path in fast):
            item.add_marker("fast")


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A real server on a unix socket; tests keep apart by deployment."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def client(valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


@pytest.fixture
def deployment() -> str:
    """A name that no other test uses."""
    return next(_deployments)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def store(client: redis.Redis, deployment: str, clock: VirtualClock) -> Store:
    """An empty store under virtual time."""
    return Store(client, deployment, now=clock)
