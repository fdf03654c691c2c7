"""What all tests share: one real Valkey server a run, a store in it, and a clock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import redis

from qwenctl.store.store import Store
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock

_deployments = (f"test-{number}" for number in itertools.count())


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
