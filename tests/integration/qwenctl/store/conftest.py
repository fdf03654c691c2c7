"""The controller lock of a store's tests."""

from __future__ import annotations

import pytest

from qwenctl.core.snapshot import Lock
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import GPU


@pytest.fixture
def lock(store: Store) -> Lock:
    """The controller lock, held for an hour."""
    lock, _, _ = store.acquire(GPU, "c0", 3600.0)
    assert lock
    return lock
