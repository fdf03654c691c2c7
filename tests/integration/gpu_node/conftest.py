"""The real agent as a process, and a real HTTP server that plays its proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import Start, agents
from tests.support.stand_in_proxy import StandInProxy


@pytest.fixture
def proxy() -> Iterator[StandInProxy]:
    with StandInProxy() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, proxy: StandInProxy) -> Iterator[Start]:
    with agents(tmp_path, proxy.url) as make:
        yield make
