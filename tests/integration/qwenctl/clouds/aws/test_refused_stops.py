"""EC2 refuses the stop: the agent stops its instance, and the refusal is told."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from qwenctl.errors import ExitCode
from tests.support.deployment import Deployment
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import CREDENTIALS, REGION, AgentMachine, MotoCloud
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import until

DEAD_MAN = 20.0


@pytest.mark.slow
def test_a_stop_that_ec2_denies_is_told_and_made_by_the_agent(
    tmp_path: Path, cloud: MotoCloud, proxy: FaultProxy, valkey: ValkeyServer
) -> None:
    cloud.set(pending=0.5, stopping=0.5, no_capacity=0)
    proxy.forget()
    instance = cloud.new_instance(cloud.client(), PrivateIpAddress="127.0.0.1")
    gpu = {
        "provider": "aws",
        "timing": {"drain": 3, "heartbeat": 0.5, "dead_man": DEAD_MAN},
        "aws": {"region": REGION, "instance_id": instance, "endpoint_url": proxy.url},
    }
    deployment = Deployment(
        tmp_path / "d",
        name="denied",
        redis_url=valkey.url,
        gpus={"main": gpu},
        env=CREDENTIALS,
    )
    stopped = tmp_path / "stopped-by-its-agent"
    agent = {
        "PROXY_URLS": json.dumps(deployment.config.node_urls),
        "GPU": "main",
        "NODE_SECRET": deployment.config.read_node_secret(),
        "POWER_OFF_COMMAND": json.dumps(["touch", str(stopped)]),
    }

    def qwenctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, *words, "--config", str(deployment.config_file)]
        env = {**inherited("AWS_"), **CREDENTIALS}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)

    try:
        deployment.start()
        with AgentMachine(cloud, instance, tmp_path / "machine", agent):
            assert deployment.proxies[0].post(timeout=60).status_code == 200
            refusal = ec2_error("UnauthorizedOperation", status=403)
            proxy.add(Fault.error(refusal, "StopInstances"))
            began = time.monotonic()
            down = qwenctl("down", "--timeout", "50")
            assert down.returncode == ExitCode.DENIED, down
            assert "main is still on, and costs" in down.stderr
            assert "UnauthorizedOperation" in down.stderr
            status = json.loads(qwenctl("status", "--json").stdout)["gpus"]["main"]
            assert status["stop_problem"]["code"] == "denied"
            until(stopped.exists, 60)
            assert time.monotonic() - began >= DEAD_MAN / 2  # it does not hurry
        assert cloud.journal(instance, "stop") == 0
        deployment.instance().assert_nothing_cut()
    finally:
        deployment.close()
