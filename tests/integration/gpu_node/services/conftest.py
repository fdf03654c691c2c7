"""One Docker daemon for all tests of one worker."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import Start, agents
from tests.support.docker_engine import DockerEngine
from tests.support.stand_in_proxy import StandInProxy


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
def proxy() -> Iterator[StandInProxy]:
    with StandInProxy() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, proxy: StandInProxy, engine: DockerEngine) -> Iterator[Start]:
    with agents(tmp_path, proxy.url) as make:
        yield functools.partial(make, DOCKER_HOST=engine.host)
    with contextlib.closing(engine.client()) as client:
        for one in client.containers(all=True):
            client.remove_container(one["Id"], force=True)
        client.prune_networks()
