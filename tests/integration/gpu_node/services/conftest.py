"""One Docker daemon for all tests of one worker."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pytest

from tests.support.agent import Start
from tests.support.docker_engine import DockerEngine


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    """A daemon that has `IMAGE`."""
    engine = DockerEngine()
    try:
        engine.start()
        engine.load_image()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def start(start: Start, engine: DockerEngine) -> Iterator[Start]:
    yield functools.partial(start, DOCKER_HOST=engine.host)
    with contextlib.closing(engine.client()) as client:
        for one in client.containers(all=True):
            client.remove_container(one["Id"], force=True)
        client.prune_networks()
