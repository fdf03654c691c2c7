"""Containers of somebody else that look like the agent's: a real daemon, and images with its labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_node.services.docker_ownership import GPU_LABEL, HASH_LABEL, SERVICE_LABEL
from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import Start, spec
from tests.support.docker_engine import IMAGE, DockerEngine
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

NAME = "qwenctl-main-webui"


@pytest.fixture
def client(engine: DockerEngine) -> Iterator[Any]:
    with contextlib.closing(engine.client()) as client:
        yield client


def no_network(client: Any, **options: Any) -> Any:
    """The bridge of this daemon may be gone: another one of these tests has none."""
    return client.create_host_config(network_mode="none", **options)


def labelled(engine: DockerEngine, **labels: str) -> str:
    """An image that carries the agent's labels, and data in an anonymous volume."""
    lines = [f'LABEL "{key}"="{value}"' for key, value in labels.items()]
    tag = "qwenctl-test:labelled"
    engine.build(tag, "\n".join([f"FROM {IMAGE}", "VOLUME /data", *lines, ""]))
    return tag


@pytest.mark.parametrize("name", ["theirs", "qwenctl-main-old"])
def test_a_container_whose_image_has_the_labels_is_not_removed(
    start: Start, proxy: StandInProxy, engine: DockerEngine, client: Any, name: str
) -> None:
    image = labelled(engine, **{GPU_LABEL: "main", SERVICE_LABEL: "old", HASH_LABEL: "0" * 16})
    made = client.create_container(image, ["8000"], name=name, host_config=no_network(client))
    client.start(made["Id"])
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    found = client.inspect_container(made["Id"])
    assert found["State"]["Running"]
    assert client.inspect_volume(found["Mounts"][0]["Name"])
    assert name in agent.log


def test_a_container_of_our_name_from_an_image_with_the_labels_is_not_taken(
    start: Start, proxy: StandInProxy, engine: DockerEngine, client: Any
) -> None:
    image = labelled(engine, **{GPU_LABEL: "main", SERVICE_LABEL: "webui", HASH_LABEL: "0" * 16})
    made = client.create_container(image, ["8000"], name=NAME, host_config=no_network(client))
    client.start(made["Id"])
    proxy.spec = spec(containerised(max_restarts=9))
    agent = start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "remove or rename it" in failed.error
    assert failed.services[0].restarts == 0
    agent.terminate()
    assert client.inspect_container(made["Id"])["State"]["Running"]


def test_an_image_of_our_own_container_gives_its_containers_no_proof(
    start: Start, proxy: StandInProxy, engine: DockerEngine, client: Any
) -> None:
    port = free_port()
    proxy.spec = spec(containerised(port=port))
    agent = start()
    ready(proxy)
    copy = client.commit(NAME, "qwenctl-test", "copied")["Id"]
    agent.process.kill()
    agent.process.wait()
    client.remove_container(NAME, force=True)
    made = client.create_container(copy, name=NAME)
    proxy.forget()
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert "remove or rename it" in failed.error
    assert client.inspect_container(made["Id"])


@pytest.mark.parametrize("ours", [True, False])
def test_a_container_of_an_earlier_version_is_known_by_how_it_was_made(
    start: Start, proxy: StandInProxy, client: Any, ours: bool
) -> None:
    logs = {"type": "json-file", "config": {"max-size": "10m", "max-file": "3"} if ours else {}}
    made = client.create_container(
        IMAGE,
        ["8000"],
        name="qwenctl-main-old",
        labels={GPU_LABEL: "main", SERVICE_LABEL: "old", HASH_LABEL: "0" * 16},
        host_config=no_network(client, log_config=logs),
    )
    client.start(made["Id"])
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    left = [found["Id"] for found in client.containers(all=True)]
    assert (made["Id"] in left) != ours
    assert ("left alone" in agent.log) != ours


def test_a_container_outlives_a_new_node_secret(
    start: Start, proxy: StandInProxy, client: Any, tmp_path: Path
) -> None:
    proxy.spec = spec(containerised())
    agent = start()
    ready(proxy)
    before = client.inspect_container(NAME)
    agent.terminate()
    secret = tmp_path / "secret.new"
    secret.write_text("another secret, which the proxy does not know yet\n")
    agent = start(NODE_SECRET_FILE=str(secret))
    until(lambda: f"{NAME} runs already" in agent.log, 30.0)
    after = client.inspect_container(NAME)
    assert (after["Id"], after["State"]["StartedAt"]) == (
        before["Id"],
        before["State"]["StartedAt"],
    )
