"""One Docker daemon for all tests of one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
