"""The main job with containers: a request wakes, is held while they start, is served, and they stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from qwenctl.core.phase import Phase
from tests.support.deployment import Deployment
from tests.support.docker_engine import IMAGE, DockerEngine

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]


@pytest.fixture
def deployment(engine: DockerEngine, tmp_path: Path) -> Iterator[Deployment]:
    service = {
        "command": ["8000", "--host", "0.0.0.0", "--load", "0.5"],
        "container": {"image": IMAGE, "gpus": "none", "port": 8000, "pull": "never"},
    }
    deployment = Deployment(
        tmp_path, gpus={"main": {"service": service}}, env={"DOCKER_HOST": engine.host}
    )
    try:
        yield deployment.start()
    finally:
        deployment.close()
        with contextlib.closing(engine.client()) as client:
            for one in client.containers(all=True):
                client.remove_container(one["Id"], force=True)


def test_a_request_wakes_containers_and_they_stop_when_nobody_needs_them(
    deployment: Deployment, engine: DockerEngine
) -> None:
    proxy = deployment.proxies[0]
    answer = requests.post(f"{proxy.url}/", json={}, timeout=60)
    # The tests' program answers no POST: that it was asked is what counts.
    assert answer.status_code == 501
    assert requests.get(f"{proxy.url}/", timeout=10).text == "hello"
    deployment.wait_phase(Phase.OFF, timeout=60)
    with contextlib.closing(engine.client()) as client:
        (container,) = client.containers(all=True)
    assert container["State"] == "exited"
    # The next wake starts the same one.
    proxy.wake()
    deployment.wait_phase(Phase.READY, timeout=60)
    with contextlib.closing(engine.client()) as client:
        assert [one["Id"] for one in client.containers()] == [container["Id"]]
    assert len(deployment.instance().starts) == 2
