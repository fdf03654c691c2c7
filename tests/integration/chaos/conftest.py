"""Deployments that are cleaned up, and one Valkey server for those that share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.deployment import Deployment
from tests.support.valkey import ValkeyServer

Deploy = Callable[..., Deployment]
T = TypeVar("T")

_numbers = count(1)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
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


def at_once(*jobs: Callable[[], T]) -> list[T]:
    """Run jobs that mostly wait in threads; the first error is raised after all have ended."""
    with ThreadPoolExecutor(len(jobs)) as threads:
        futures = [threads.submit(job) for job in jobs]
    return [future.result() for future in futures]
