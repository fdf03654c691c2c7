"""Settings that change while an instance is on, in real processes: proxy, command line, instances."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from qwenctl.core.phase import Phase
from tests.support.deployment import Deployment
from tests.support.fake_ecs import Cloud, FakeEcs
from tests.support.fake_ecs.deployed import key_in_environment, put_agent, table_of
from tests.support.program import PROGRAM, inherited
from tests.support.toml import toml
from tests.support.valkey_server import ValkeyServer

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

_numbers = count(os.getpid())
FIRST, SECOND = "i-bp1fake0001", "i-bp1fake0002"


def edit(deployment: Deployment, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    content = tomllib.loads(deployment.config_file.read_text())
    change(content)
    deployment.config_file.write_text(toml(content))


def run(deployment: Deployment, *words: str) -> str:
    done = subprocess.run(
        [PROGRAM, words[0], "--config", str(deployment.config_file), *words[1:]]
        if words[0] != "config"
        else [PROGRAM, "--config", str(deployment.config_file), *words],
        env=inherited(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def until(what: Callable[[], bool], seconds: float, words: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, words()
        time.sleep(0.05)


@pytest.fixture
def two(tmp_path: Path, valkey: ValkeyServer) -> Iterator[Deployment]:
    """``main``, and ``old`` without an agent, which runs as long as somebody stops it."""
    deployment = Deployment(
        tmp_path / "d",
        name=f"former-{next(_numbers)}",
        redis_url=valkey.url,
        gpus={"main": {}, "old": {"agent": False, "idle_timeout": 6000, "hosts": ["old.test"]}},
    )
    yield deployment
    deployment.close()


@pytest.mark.parametrize("by", ["serve", "down"])
def test_a_gpu_that_was_removed_from_the_file_is_stopped(two: Deployment, by: str) -> None:
    proxy = two.start().proxies[0]
    two.store.pin("old", "pin:ada", 6000.0, reason="", actor="ada")
    two.wait_phase(Phase.READY, gpu="old")
    proxy.kill()
    edit(two, lambda content: content["gpu"].pop("old"))
    for command in (("status",), ("why", "--gpu", "old")):
        assert "the settings no longer have" in run(two, *command), command
    told = json.loads(run(two, "status", "--json"))["gpus"]["old"]
    assert (told["removed"], told["phase"]) == (True, "ready")
    for words in (("doctor",), ("config", "validate")):
        assert "the settings no longer have gpu.old, and local" in run(two, *words), words
    assert two.instance("old").stops == []
    if by == "serve":
        proxy.start().wait_ready()
        until(lambda: bool(two.instance("old").stops), 30, lambda: two.history("old"))
        until(lambda: two.store.gpus() == ["main"], 30, lambda: two.history("old"))
    else:
        assert "old is off" in run(two, "down", "--gpu", "old")
    assert two.instance("old").record["state"] in ("stopping", "stopped")
    two.instance("old").assert_alternating()
    assert "old" not in run(two, "status")


def test_the_last_gpu_that_was_removed_from_the_file_is_named(two: Deployment) -> None:
    proxy = two.start().proxies[0]
    two.store.pin("old", "pin:ada", 6000.0, reason="", actor="ada")
    two.wait_phase(Phase.READY, gpu="old")
    proxy.kill()
    edit(two, lambda content: content.pop("gpu"))
    for command in (("status",), ("why",)):
        assert "the settings no longer have" in run(two, *command), command
    for words in (("doctor",), ("config", "validate"), ("serve",), ("down",)):
        told = run(two, *words)
        assert "no GPU is configured" in told, words
        assert "gpu.old" in told, words
        assert "`qwenctl down --gpu old` stops it" in told, words
    assert "old is off" in run(two, "down", "--gpu", "old")
    assert two.instance("old").record["state"] in ("stopping", "stopped")
    assert "no GPU is configured" in run(two, "status")


@pytest.fixture
def cloud() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


@pytest.fixture
def pinned(cloud: FakeEcs, tmp_path: Path, valkey: ValkeyServer) -> Iterator[Deployment]:
    """A GPU of the fake cloud with the real agent in it, ready and pinned for hours."""
    deployment = Deployment(
        tmp_path / "d",
        name=f"former-{next(_numbers)}",
        redis_url=valkey.url,
        gpus={"main": table_of(cloud, FIRST, timing={"dead_man": 45})},
        env=key_in_environment(cloud),
    )
    for name in (FIRST, SECOND):
        instance = cloud.cloud.add(
            name, start_seconds=0.5, stop_seconds=0.5, private_ip="127.0.0.1"
        )
        put_agent(deployment, instance, name)
    yield deployment
    deployment.close()


def on(cloud: Cloud) -> list[str]:
    return [name for name, instance in cloud.instances.items() if instance.status != "Stopped"]


@pytest.mark.slow
def test_two_instances_of_a_gpu_are_never_on_though_the_id_was_changed(
    cloud: FakeEcs, pinned: Deployment
) -> None:
    proxy = pinned.start().proxies[0]
    pinned.store.pin("main", "pin:ada", 6000.0, reason="", actor="ada")
    pinned.wait_phase(Phase.READY, timeout=60)
    boot = pinned.store.snapshot("main").node["boot_id"]
    proxy.kill()

    def change(content: dict) -> None:  # type: ignore[type-arg]
        content["gpu"]["main"]["aliyun"]["instance_id"] = SECOND

    edit(pinned, change)
    proxy.start().wait_ready()
    seen: list[list[str]] = []

    def second_is_ready() -> bool:
        seen.append(on(cloud.cloud))
        snapshot = pinned.store.snapshot("main")
        return snapshot.phase is Phase.READY and snapshot.state["instance_id"] == SECOND

    until(second_is_ready, 90, pinned.history)
    assert all(len(names) <= 1 for names in seen), seen
    assert on(cloud.cloud) == [SECOND]
    assert pinned.store.snapshot("main").node["boot_id"] != boot
    assert FIRST in pinned.history()  # the block says why
