"""Deployments that are cleaned up, and one Valkey server for those that share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import Deployment
from tests.support.valkey_server import ValkeyServer

Deploy = Callable[..., Deployment]

_numbers = count(1)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(appendonly="yes") as server:
        yield server


@pytest.fixture
def deploy(tmp_path: Path, valkey: ValkeyServer) -> Iterator[Deploy]:
    """Make a deployment; ``redis_url`` is the shared server's unless given."""
    made: list[Deployment] = []

    def make(**options: Any) -> Deployment:
        number = next(_numbers)
        options = {"redis_url": valkey.url, "name": f"chaos-{number}", **options}
        deployment = Deployment(tmp_path / f"d{number}", **options)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.close()
