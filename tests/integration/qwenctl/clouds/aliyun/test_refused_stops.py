"""A proxy that lives and cannot stop its instance: the agent stops it, and the refusal is told."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwenctl.core.phase import Observed, Phase
from qwenctl.errors import ExitCode
from tests.support.deployment import Deployment
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import INSTANCE
from tests.support.fake_ecs.deployed import key_in_environment, put_agent, table_of
from tests.support.program import PROGRAM, inherited
from tests.support.waiting import until

DEAD_MAN = 5.0


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """What the agent's own stop makes."""
    return tmp_path / "stopped-by-its-agent"


@pytest.fixture
def deployed(fake: FakeEcs, tmp_path: Path, stopped: Path) -> Iterator[Deployment]:
    timing = {"drain": 3, "heartbeat": 0.5, "dead_man": DEAD_MAN}
    deployment = Deployment(
        tmp_path / "d",
        gpus={"main": table_of(fake, timing=timing)},
        env=key_in_environment(fake),
    )
    instance = fake.cloud.add(start_seconds=0.2, stop_seconds=0.2, private_ip="127.0.0.1")
    command = json.dumps(["touch", str(stopped)])
    put_agent(deployment, instance, POWER_OFF_COMMAND=command)
    yield deployment
    deployment.close()


def refuse(fake: FakeEcs, action: str, code: str, status: int) -> None:
    fake.fail(action, "error", code=code, status=status, times=float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "code", "status"),
    [
        (("StopInstance",), "Forbidden.RAM", 403),
        (("StopInstance", "DescribeInstances"), "InvalidAccessKeyId.NotFound", 404),
        (("StopInstance", "DescribeInstances"), "InvalidTimeStamp.Expired", 400),
        (("StopInstance", "DescribeInstances"), "Throttling.User", 400),
    ],
    ids=["stop-denied", "key-invalid", "clock-off", "throttled"],
)
def test_the_agent_stops_what_the_proxy_cannot(
    fake: FakeEcs,
    deployed: Deployment,
    stopped: Path,
    actions: tuple[str, ...],
    code: str,
    status: int,
) -> None:
    proxy = deployed.start().proxies[0]
    assert proxy.post("/count", timeout=60).status_code == 200
    for action in actions:
        refuse(fake, action, code, status)
    # The demand ends after the idle timeout of 2 s.
    began = time.monotonic()
    until(stopped.exists, 40)
    took = time.monotonic() - began
    assert took >= DEAD_MAN  # not before its bound
    assert fake.cloud.instances[INSTANCE].stops == 0
    log = (deployed.directory / "node" / "agent.log").read_text()
    assert "nobody has needed this instance" in log
    deployed.instance().assert_nothing_cut()


@pytest.mark.slow
@pytest.mark.parametrize("action", ["StopInstance", "DescribeInstances"])
def test_commands_tell_a_refused_stop(fake: FakeEcs, deployed: Deployment, action: str) -> None:
    def qwenctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *arguments, "--config", str(deployed.config_file)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=inherited(), check=False
        )

    proxy = deployed.start().proxies[0]
    assert proxy.post("/count", timeout=60).status_code == 200
    refuse(fake, action, "Forbidden.RAM", 403)
    down = qwenctl("down", "--timeout", "50")
    assert down.returncode == ExitCode.DENIED, down
    assert "main is still on, and costs" in down.stderr
    assert "Forbidden.RAM" in down.stderr
    why = qwenctl("why").stdout
    assert "it goes off" not in why
    assert "it stays on, and costs" in why
    assert "Forbidden.RAM" in why
    status = json.loads(qwenctl("status", "--json").stdout)["gpus"]["main"]
    assert status["stop_problem"]["code"] == "denied"
    assert "still on" in qwenctl("status").stdout


@pytest.mark.slow
def test_the_agent_does_not_stop_what_is_needed_or_works(
    fake: FakeEcs, deployed: Deployment, stopped: Path
) -> None:
    proxy = deployed.start().proxies[0]
    assert proxy.post("/count", timeout=60).status_code == 200
    refuse(fake, "StopInstance", "Forbidden.RAM", 403)
    end = time.monotonic() + DEAD_MAN + 6
    while time.monotonic() < end:
        assert proxy.post("/count", timeout=10).status_code == 200
        assert not stopped.exists()
        time.sleep(0.5)
    assert deployed.store.snapshot("main").phase is Phase.READY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"), [("Throttling.User", 400), ("InvalidSecurityToken.Expired", 400)]
)
def test_a_ready_node_serves_while_the_cloud_cannot_be_asked(
    fake: FakeEcs, deployed: Deployment, code: str, status: int
) -> None:
    proxy = deployed.start().proxies[0]
    with ThreadPoolExecutor() as pool:
        asked = time.monotonic()
        answer = pool.submit(proxy.post, "/count", 40)
        until(lambda: fake.cloud.instances[INSTANCE].starts, 30)
        refuse(fake, "DescribeInstances", code, status)
        assert answer.result().status_code == 200
    assert time.monotonic() - asked < 30
    assert deployed.store.snapshot("main").observed is Observed.UNKNOWN
