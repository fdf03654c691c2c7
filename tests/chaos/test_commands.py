"""What a person asks of the node reaches it in the answer to its report."""

from __future__ import annotations

import subprocess

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.deployment import Deployment
from tests.support.program import PROGRAM


def restart(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = str(deployment.proxies[0].config)
    return subprocess.run(
        [PROGRAM, "--config", config, "restart", *arguments], capture_output=True, text=True
    )


def test_restart_of_a_service(deploy: Deploy) -> None:
    deployment = deploy(gpus={"main": {"idle_timeout": 60}}).start()
    nobody = restart(deployment)
    assert nobody.returncode == 1
    assert "is not running" in nobody.stderr
    assert "qwenctl up" in nobody.stderr

    deployment.proxies[0].wake()
    deployment.wait_phase(Phase.READY)
    after = deployment.last_event()
    assert restart(deployment, "nonsense").returncode == 2
    done = restart(deployment)
    assert done.returncode == 0, done.stderr
    deployment.wait_transition(Phase.LOADING, after=after)
    deployment.wait_transition(Phase.READY, after=after)
    assert len(deployment.instance().boots) == 1
