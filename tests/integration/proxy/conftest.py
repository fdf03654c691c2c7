"""One running proxy for all tests of a module that only forward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.proxy.running import RunningProxy, running


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy without access control, whose GPU is on. Tests leave it so."""
    with running(tmp_path_factory.mktemp("ready")) as proxy:
        proxy.wake()
        yield proxy
