"""Images from a real registry: progress, logins, what is not there, and stops in the middle."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_node.services.docker import DockerRuntime
from qwenctl.protocol.messages import Command, Progress, Report, Service
from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import AgentProcess, Start, spec
from tests.support.docker_engine import IMAGE, DockerEngine, Registry, SlowFront
from tests.support.stand_in_proxy import StandInProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    yield registry
    registry.close()


@pytest.fixture
def slow(registry: Registry) -> Iterator[SlowFront]:
    front = SlowFront(registry, rate=4_000_000)
    yield front
    front.close()


@pytest.fixture
def layered(engine: DockerEngine, registry: Registry) -> str:
    """An image of three layers more than `IMAGE` has, on the registry and not on the node."""
    files = {f"weights-{n}": os.urandom(3_000_000) for n in range(3)}
    lines = [f"FROM {IMAGE}", *(f"COPY {name} /{name}" for name in files)]
    engine.build("qwenctl-test:layered", "\n".join(lines) + "\n", files)
    name = registry.push(engine, "qwenctl-test:layered", "team/webui:1")
    with contextlib.closing(engine.client()) as client:
        client.remove_image("qwenctl-test:layered", force=True)
    return name


def pulls(reports: list[Report]) -> list[float]:
    return [
        r.progress.percent
        for r in reports
        if r.progress.phase == "pull" and r.progress.percent is not None
    ]


def from_front(slow: SlowFront, **more: object) -> Service:
    return containerised(image=f"{slow.address}/team/webui:1", pull="missing", **more)


def test_a_pull_tells_how_far_it_is(
    start: Start, proxy: StandInProxy, engine: DockerEngine, layered: str, slow: SlowFront
) -> None:
    proxy.spec = spec(from_front(slow))
    start()
    ready(proxy)
    percents = pulls(proxy.reports)
    assert percents == sorted(percents)
    assert len(set(percents)) >= 3
    assert any(0 < percent < 100 for percent in percents)
    texts = [r.progress.text for r in proxy.reports if r.progress.phase == "pull"]
    # A layer of a few bytes may be taken for a usual one until it is seen.
    assert texts[-1] in ("9.0 MB / 9.0 MB", "9.0 MB / 12.0 MB")


def test_a_stop_in_the_middle_of_a_pull_is_heeded_at_once(
    start: Start, proxy: StandInProxy, engine: DockerEngine, layered: str, slow: SlowFront
) -> None:
    slow.rate = 0
    proxy.spec = spec(from_front(slow))
    agent = start()
    until(lambda: slow.layers_asked_for, 30.0)
    proxy.commands.append(Command(verb="drain"))
    proxy.wait_report(lambda r: r.services and r.services[0].state == "stopped")
    assert agent.terminate(5.0) == 0
    with contextlib.closing(engine.client()) as client:
        assert client.containers(all=True) == []


def test_an_agent_killed_in_the_middle_of_a_pull_begins_anew_and_makes_one_container(
    start: Start, proxy: StandInProxy, engine: DockerEngine, layered: str, slow: SlowFront
) -> None:
    slow.rate = 0
    proxy.spec = spec(from_front(slow))
    agent = start()
    until(lambda: slow.layers_asked_for, 30.0)
    agent.process.kill()
    agent.process.wait()
    slow.rate = 100_000_000
    start()
    ready(proxy)
    with contextlib.closing(engine.client()) as client:
        assert len(client.containers(all=True)) == 1


def test_a_registry_that_breaks_off_is_asked_again(
    start: Start, proxy: StandInProxy, engine: DockerEngine, layered: str, slow: SlowFront
) -> None:
    slow.rate = 300_000
    proxy.spec = spec(from_front(slow))
    start()
    until(lambda: slow.layers_asked_for, 30.0)
    time.sleep(0.5)
    slow.break_off()
    slow.rate = 100_000_000
    ready(proxy)


def test_an_image_that_is_not_there_is_named(
    start: Start, proxy: StandInProxy, registry: Registry, layered: str
) -> None:
    missing = f"{registry.address}/team/other:9"
    proxy.spec = spec(containerised(image=missing, pull="missing", max_restarts=9))
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
    assert f"the registry has no image {missing}" in failed.error


def test_a_registry_that_wants_a_login(
    start: Start, proxy: StandInProxy, engine: DockerEngine, tmp_path: Path
) -> None:
    registry = Registry(password="open-sesame-1")
    try:
        name = registry.push(engine, IMAGE, "team/private:1")
        proxy.spec = spec(containerised(image=name, pull="always", max_restarts=0))
        agent = start()
        failed = proxy.wait_report(lambda r: r.state == "failed", timeout=60)
        assert "docker login" in failed.error
        assert agent.terminate() == 0
        proxy.forget()

        login = base64.b64encode(b"user:open-sesame-1").decode()
        auth = tmp_path / "config.json"
        auth.write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
        agent = start(REGISTRY_AUTH_FILE=str(auth))
        ready(proxy)
        said = agent.log + "".join(r.model_dump_json() for r in proxy.reports)
        assert "open-sesame" not in said
        assert login not in said
    finally:
        registry.close()


def test_a_newer_image_replaces_the_container_and_the_old_image(
    start: Start, proxy: StandInProxy, engine: DockerEngine, registry: Registry
) -> None:
    def publish(content: bytes) -> str:
        engine.build("qwenctl-test:next", f"FROM {IMAGE}\nCOPY v /v\n", {"v": content})
        with contextlib.closing(engine.client()) as client:
            made = client.inspect_image("qwenctl-test:next")["Id"]
            registry.push(engine, "qwenctl-test:next", "team/webui:latest")
            client.remove_image("qwenctl-test:next", force=True)
        return str(made)

    old = publish(b"1" * 50_000)
    service = containerised(image=f"{registry.address}/team/webui", pull="always")
    proxy.spec = spec(service)
    agent = start(KEEP_CONTAINERS="false")
    ready(proxy)
    agent.terminate()
    new = publish(b"2" * 50_000)
    proxy.forget()
    start()
    ready(proxy)
    with contextlib.closing(engine.client()) as client:
        assert client.inspect_container("qwenctl-main-webui")["Image"] == new
        assert old not in [image["Id"] for image in client.images()]


def test_a_registry_that_is_away_does_not_stop_a_node_that_has_the_image(
    start: Start, proxy: StandInProxy, engine: DockerEngine, registry: Registry
) -> None:
    name = f"{registry.address}/team/webui"
    with contextlib.closing(engine.client()) as client:
        client.tag(IMAGE, name, "latest")
    registry.close()
    proxy.spec = spec(containerised(image=name, pull="always"))
    agent = start()
    ready(proxy)
    assert "going on with the image that is here" in agent.log


@pytest.fixture
def big(engine: DockerEngine, registry: Registry) -> str:
    """An image of 40 MB, of which nothing can be run, on the registry and not on the node."""
    files = {"weights": os.urandom(40_000_000)}
    engine.build("qwenctl-test:big", "FROM scratch\nCOPY weights /weights\n", files)
    name = registry.push(engine, "qwenctl-test:big", "team/big:1")
    with contextlib.closing(engine.client()) as client:
        client.remove_image("qwenctl-test:big", force=True)
    return name


def test_a_full_disk_is_named(proxy: StandInProxy, big: str, tmp_path: Path) -> None:
    small = DockerEngine("--bridge=none", "--iptables=false", size=60_000_000)
    try:
        small.start()
        service = containerised(image=big, pull="missing", network="host", max_restarts=0)
        proxy.spec = spec(service)
        agent = AgentProcess(tmp_path, [proxy.url], DOCKER_HOST=small.host)
        try:
            failed = proxy.wait_report(lambda r: r.state == "failed", timeout=90)
            assert f"no room on the disk for the image {big}" in failed.error
        finally:
            agent.process.kill()
            agent.process.wait()
    finally:
        small.close()


class Quiet:
    """An output that nobody reads."""

    def line(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...


def test_a_registry_that_hangs_is_given_up_and_asked_again(
    engine: DockerEngine, layered: str, slow: SlowFront, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gpu_node.services.image_pull.REGISTRY_PATIENCE", 2.0)
    slow.rate = 0
    runtime = DockerRuntime("main", tmp_path, host=engine.host)
    instance = runtime.start(from_front(slow), Quiet())
    ended: list[str] = []
    life = threading.Thread(target=lambda: ended.append(instance.wait()))
    life.start()
    try:
        until(lambda: slow.layers_asked_for >= 3, 30.0)
        asked = slow.layers_asked_for
        until(lambda: slow.layers_asked_for > asked, 30.0)  # anew, not joined to what hangs
        slow.rate = 100_000_000
        until(lambda: instance.up, seconds=60)
    finally:
        slow.rate = slow.rate or 100_000_000
        instance.stop(1.0)
        life.join(30)
    assert not life.is_alive()
    with contextlib.closing(engine.client()) as client:
        for one in client.containers(all=True):
            client.remove_container(one["Id"], force=True)
