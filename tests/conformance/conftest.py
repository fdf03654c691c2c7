"""Servers that all cases share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.planes import Planes


@pytest.fixture(scope="session")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    planes = Planes(tmp_path_factory.mktemp("planes"))
    yield planes
    planes.close()
