"""The main job on Alibaba Cloud: wake, forward, stop, with real processes; and what it costs in calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from qwenctl.clouds.aliyun.provider import AliyunProvider
from qwenctl.config.loading import load_config
from qwenctl.config.providers import make_provider
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store
from tests.support.deployment import ROOT, Deployment
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import INSTANCE, credentials_of, provider_for
from tests.support.fake_ecs.deployed import key_in_environment, put_agent, table_of
from tests.support.program import PROGRAM
from tests.support.virtual_time import VirtualClock
from tests.unit.qwenctl.clouds.contract import wait_for

EXAMPLE = ROOT / "examples" / "aliyun" / "qwenctl.toml"
PASSWORD_HASH = (
    "$argon2id$v=19$m=64,t=1,p=1$zh4foJ0Zag4qC5b1zkgpDA$3/vTLDLZOZFWIiHMmkBXL0dwkBtyfwe8feIttVGbuxg"
)


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


@pytest.fixture
def deployed(fake: FakeEcs, tmp_path: Path) -> Iterator[Deployment]:
    """A proxy whose GPU is an instance of the fake cloud with the real agent in it."""
    deployment = Deployment(
        tmp_path / "d",
        gpus={"main": table_of(fake, aliyun={"read_timeout": 30})},
        env=key_in_environment(fake),
    )
    instance = fake.cloud.add(start_seconds=1.0, stop_seconds=0.5, private_ip="127.0.0.1")
    put_agent(deployment, instance)
    yield deployment
    deployment.close()


@pytest.mark.slow
def test_the_main_job(fake: FakeEcs, deployed: Deployment) -> None:
    instance = fake.cloud.instances[INSTANCE]
    proxy = deployed.start().proxies[0]
    # Twice, because the second start is one from economical mode that this proxy has made.
    for boot in (1, 2):
        before = fake.received["DescribeInstances"]
        answer = proxy.post("/count", timeout=120)  # held while the GPU wakes
        assert answer.status_code == 200, (answer.text, deployed.history(), proxy.log[-3000:])
        looks = fake.received["DescribeInstances"] - before
        assert (instance.starts, instance.stops) == (boot, boot - 1)
        assert instance.status == "Running"
        deployed.wait_phase(Phase.OFF, timeout=60)
        assert (instance.starts, instance.stops) == (boot, boot), deployed.history()
        assert (instance.status, instance.stopped_mode) == ("Stopped", "StopCharging")
        assert instance.process is None
        print(f"boot {boot}: {looks} DescribeInstances until the answer")
        assert looks <= 12  # a busy machine makes a boot long
    assert [call["StoppedMode"] for call in fake.calls_of("StopInstance")] == ["StopCharging"] * 2
    deployed.instance().assert_nothing_cut()
    assert fake.key.id not in proxy.log
    assert "Signature" not in proxy.log
    assert "Traceback" not in proxy.log


def test_calls_for_a_boot_of_ninety_seconds(
    fake: FakeEcs, client: redis.Redis, deployment: str, clock: VirtualClock
) -> None:
    """30 s until running, 15 s until the agent's hello, 45 s until ready; under virtual time."""
    instance = fake.cloud.add(start_seconds=3600, stop_seconds=3600)
    store = Store(client, deployment, now=clock)
    gpu = load_config(str(EXAMPLE), env={}).gpu["main"]
    provider = provider_for(fake, read_timeout=60)
    provider.call_timeout = 30.0  # real seconds above, virtual ones below
    controller = Controller("main", gpu, store, provider, monotonic=clock)
    boot = {"gpu": "main", "boot_id": "boot-0001"}
    began = clock.now
    hello_at, next_beat, seq = None, 0.0, 0
    looks: dict[str, int] = {}

    def step() -> float:
        phase, before = store.snapshot("main").phase, fake.received["DescribeInstances"]
        delay = controller.step()
        looks[phase.value] = looks.get(phase.value, 0) + fake.received["DescribeInstances"] - before
        return delay

    def run_for(seconds: float) -> None:
        nonlocal hello_at, next_beat, seq
        end = clock.now + seconds
        due = clock.now
        while clock.now < end:
            age = clock.now - began
            if instance.status == "Starting" and age >= 30:
                instance.status = "Running"
            if age >= 45 and hello_at is None and instance.status == "Running":
                _, seq = store.hello(Hello(**boot), "nonce-hello-0001")
                hello_at = clock.now
                due = clock.now  # a change wakes the controller
            if hello_at is not None and clock.now >= next_beat:
                state = "ready" if age >= 90 else "loading"
                report = Report(**boot, start_seq=seq, state=state)
                store.report(report, f"nonce-{age:012.3f}", heartbeat=gpu.timing.heartbeat)
                next_beat = clock.now + gpu.timing.heartbeat
                due = clock.now
            if clock.now >= due:
                due = clock.now + step()
            clock.advance(0.25)

    store.pin("main", "pin:test", 3600, reason="test", actor="test")
    run_for(100)
    assert store.snapshot("main").phase is Phase.READY
    assert instance.starts == 1
    wake = fake.received["DescribeInstances"]
    run_for(600)
    use = fake.received["DescribeInstances"] - wake
    print(f"DescribeInstances: {wake} for a boot of 90 s {looks}, {use} for 10 min of use")
    assert wake <= 6
    assert use <= 11


# The example


def test_the_example_is_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "config", "validate", "--config", str(EXAMPLE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "QWENCTL_STATE_DIR": str(tmp_path),
            "QWENCTL_ACCESS__PASSWORD_HASH": PASSWORD_HASH,  # it is marked REPLACE
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_starts_and_stops_an_instance(fake: FakeEcs) -> None:
    instance = fake.cloud.add(start_seconds=0, stop_seconds=0)
    env = {
        "QWENCTL_GPU__MAIN__ALIYUN__ENDPOINT": fake.endpoint,
        "QWENCTL_GPU__MAIN__ALIYUN__PROTOCOL": "http",
    }
    config = load_config(str(EXAMPLE), env=env)
    provider = make_provider("main", config.gpu["main"], config)
    assert isinstance(provider, AliyunProvider)
    provider._ecs._credentials = credentials_of(fake.key)
    assert provider.describe().state is Observed.STOPPED
    provider.start()
    assert wait_for(provider, Observed.RUNNING, 30).address == instance.private_ip
    provider.stop()
    wait_for(provider, Observed.STOPPED, 30)
    assert instance.stopped_mode == "StopCharging"
