"""The main job once, in real processes: a proxy with the AWS provider, moto as EC2, and the real agent
on the "instance"; and the example's files."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenctl.config.loading import load_config
from qwenctl.core.phase import Phase
from tests.support.deployment import Deployment
from tests.support.faults import FaultProxy
from tests.support.moto_cloud import CREDENTIALS, REGION, AgentMachine, MotoCloud
from tests.support.paths import ROOT
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer

EXAMPLE = ROOT / "examples" / "aws"
PASSWORD_HASH = (
    "$argon2id$v=19$m=64,t=1,p=1$zh4foJ0Zag4qC5b1zkgpDA$3/vTLDLZOZFWIiHMmkBXL0dwkBtyfwe8feIttVGbuxg"
)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[MotoCloud]:
    with MotoCloud(tmp_path / "moto.log") as server:
        yield server


@pytest.fixture
def faults(cloud: MotoCloud) -> Iterator[FaultProxy]:
    with FaultProxy(cloud.url) as proxy:
        yield proxy


@pytest.mark.slow
def test_the_main_job(
    tmp_path: Path, cloud: MotoCloud, faults: FaultProxy, valkey: ValkeyServer
) -> None:
    instance = cloud.new_instance(cloud.client(), PrivateIpAddress="127.0.0.1")
    cloud.set(pending=3.0, stopping=3.0)
    gpu: dict[str, Any] = {
        "provider": "aws",
        "idle_timeout": 5,
        "aws": {"region": REGION, "instance_id": instance, "endpoint_url": faults.url},
    }
    deployment = Deployment(
        tmp_path / "d", name="aws", redis_url=valkey.url, gpus={"main": gpu}, env=CREDENTIALS
    )
    config = deployment.config
    agent = {
        "PROXY_URLS": json.dumps(config.node_urls),
        "GPU": "main",
        "NODE_SECRET": config.read_node_secret(),
    }
    try:
        deployment.start()
        [proxy] = deployment.proxies
        with AgentMachine(cloud, instance, tmp_path / "machine", agent) as machine:
            deployment.wait_phase(Phase.OFF)
            quiet = len(faults.calls())
            assert quiet <= 3, faults.calls()

            assert proxy.wake().status_code < 300
            answer = proxy.post(timeout=120)  # held until the GPU is ready, then forwarded
            assert answer.status_code == 200, deployment.history()
            assert answer.json()["pid"] != proxy.pid
            assert machine.boots == 1
            assert len(faults.calls("StartInstances")) == 1
            looks = len(faults.calls("DescribeInstances"))
            assert looks - quiet <= 12, faults.calls()

            deployment.wait_phase(Phase.OFF, timeout=120)
            assert cloud.state(instance) == "stopped"
            assert len(faults.calls("StopInstances")) == 1
            assert cloud.journal(instance, "start") == cloud.journal(instance, "stop") == 1
            assert len(faults.calls("DescribeInstances")) - looks <= 12, faults.calls()
        deployment.instance().assert_nothing_cut()
        shown = proxy.log + deployment.history() + json.dumps(proxy.status())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            assert CREDENTIALS[name] not in shown
    finally:
        deployment.close()


def qwenctl(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = inherited("AWS_")
    return subprocess.run(
        [PROGRAM, *words],
        env={**clean, **CREDENTIALS, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_is_valid(tmp_path: Path) -> None:
    env = {
        "QWENCTL_CONFIG": str(EXAMPLE / "qwenctl.toml"),
        "QWENCTL_STATE_DIR": str(tmp_path),
        "QWENCTL_ACCESS__PASSWORD_HASH": PASSWORD_HASH,  # it is marked REPLACE
    }
    done = qwenctl("config", "validate", env=env)
    assert done.returncode == 0, done.stderr
    gpu = load_config(str(EXAMPLE / "qwenctl.toml"), env={}).gpu["main"]
    assert (gpu.provider, gpu.aws.region) == ("aws", REGION)


@pytest.mark.slow
def test_the_example_starts_and_stops_an_instance(
    tmp_path: Path, cloud: MotoCloud, faults: FaultProxy, valkey: ValkeyServer
) -> None:
    instance = cloud.new_instance(cloud.client(), PrivateIpAddress="127.0.0.1")
    cloud.set(pending=0.5, stopping=0.5)
    env = {
        "QWENCTL_CONFIG": str(EXAMPLE / "qwenctl.toml"),
        "QWENCTL_STATE_DIR": str(tmp_path),
        "QWENCTL_REDIS_URL": valkey.url,
        "QWENCTL_DEPLOYMENT": "aws-example",
        "QWENCTL_GPU__MAIN__AWS__INSTANCE_ID": instance,
        "QWENCTL_GPU__MAIN__AWS__ENDPOINT_URL": faults.url,
    }
    # There is no agent, so it never gets ready: the start is what counts.
    qwenctl("up", "--timeout", "15s", env=env)
    assert cloud.journal(instance, "start") == 1
    done = qwenctl("down", "--now", env=env)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 60
    while cloud.state(instance) != "stopped":
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.2)
    assert cloud.journal(instance, "stop") == 1
