"""Agents of two versions, one after the other, with the same state and the same container."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from gpu_node.services.docker_ownership import PROOF_LABEL
from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import Start, spec
from tests.support.docker_engine import DockerEngine
from tests.support.net import free_port
from tests.support.old_version import unpacked
from tests.support.paths import ROOT
from tests.support.stand_in_proxy import StandInProxy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

BEFORE = "49f2045"
"""Version 0.1.0, whose containers carry no proof."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old version's source."""
    return unpacked(BEFORE, tmp_path_factory.mktemp("old"))


def container(engine: DockerEngine) -> Any:
    with contextlib.closing(engine.client()) as client:
        [only] = client.containers(all=True)
        return client.inspect_container(only["Id"])


def test_an_upgrade_takes_the_container_up_and_a_downgrade_too(
    start: Start, proxy: StandInProxy, engine: DockerEngine, old: Path
) -> None:
    port = free_port()
    proxy.spec = spec(containerised(port=port))
    before = None
    for source in (old, ROOT, old, ROOT):
        agent = start(source=source)
        ready(proxy)
        made = container(engine)
        assert PROOF_LABEL not in made["Config"]["Labels"]
        assert before in (None, (made["Id"], made["State"]["StartedAt"]))
        before = made["Id"], made["State"]["StartedAt"]
        assert agent.terminate() == 0
        proxy.forget()
    # What is made anew has a proof, and the old version runs it all the same.
    proxy.spec = spec(containerised(port=port, env={"A": "2"}), version="2")
    agent = start()
    proxy.wait_report(lambda r: (r.state, r.spec_version) == ("ready", "2"), timeout=60)
    made = container(engine)
    assert PROOF_LABEL in made["Config"]["Labels"]
    assert agent.terminate() == 0
    proxy.forget()
    start(source=old)
    ready(proxy)
    assert container(engine)["Id"] == made["Id"]
