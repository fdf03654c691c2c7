"""A GPU with its controller, cloud and agent, under virtual time."""

from __future__ import annotations

import pytest

from qwenctl.store.store import Store
from tests.simulation.life import Life
from tests.support.virtual_time import VirtualClock


@pytest.fixture
def life(store: Store, clock: VirtualClock) -> Life:
    return Life(store, clock)
