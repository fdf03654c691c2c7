"""A GPU whose driver is loaded after Docker has begun: a real daemon with a stand-in for NVIDIA's hook."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import AgentProcess, spec
from tests.support.docker_engine import DockerEngine
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

HOOK = """#!/bin/sh
test -e {driver} && exit 0
echo "Auto-detected mode as 'legacy'" >&2
echo "nvidia-container-cli: initialization error: nvml error: driver not loaded" >&2
exit 1
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The file that is there once the driver is loaded."""
    return tmp_path / "driver"


@pytest.fixture
def engine(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerEngine]:
    """A daemon that finds nvidia-container-toolkit when it begins."""
    hook = tmp_path / "bin" / "nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text(HOOK.format(driver=driver))
    hook.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hook.parent}:{os.environ['PATH']}")
    engine = DockerEngine("--bridge=none", "--iptables=false")
    try:
        engine.start()
        engine.load_image()
        yield engine
    finally:
        engine.close()


def test_a_driver_that_is_late_is_waited_for(
    engine: DockerEngine, driver: Path, proxy: StandInProxy, tmp_path: Path
) -> None:
    port = free_port()
    proxy.spec = spec(
        containerised(
            network="host", port=port, command=(str(port),), gpus=("all",), max_restarts=1
        )
    )
    agent = AgentProcess(tmp_path, [proxy.url], DOCKER_HOST=engine.host)
    try:
        proxy.wait_report(lambda r: "waiting for the NVIDIA driver" in r.progress.text, timeout=60)
        time.sleep(5.0)  # far more than one restart, which would have been counted
        assert {r.state for r in proxy.reports} == {"loading"}
        assert "nvml error: driver not loaded" in proxy.reports[-1].error
        assert "install nvidia-container-toolkit" not in proxy.reports[-1].error
        driver.touch()
        ready(proxy)
        assert proxy.reports[-1].services[0].restarts == 0
    finally:
        agent.process.kill()
        agent.process.wait()
