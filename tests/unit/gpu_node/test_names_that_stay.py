"""Names that files on machines contain (docs/decisions/0008-names-that-outlive-the-move.md)."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gpu_node.services.docker_ownership import (
    GPU_LABEL,
    HASH_LABEL,
    PROOF_LABEL,
    SERVICE_LABEL,
)
from gpu_node.setup.systemd_units import WATCHDOG, Node, render
from tests.support.net import free_port

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("module", ["gpu_node.aliyun_stop", "gpu_node.watchdog"])
def test_a_node_runs_its_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Stop this" in done.stdout


def test_the_sample_of_a_written_config_file_answers() -> None:
    port = free_port()
    sample = subprocess.Popen([sys.executable, "-m", "qwenctl.cli.sample", str(port)])
    try:
        until = time.monotonic() + 30.0
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5.0) as answer:
                    assert answer.status == 200
                return
            except OSError:
                assert sample.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        sample.terminate()
        sample.wait(10)


def test_the_unit_has_the_name_that_every_version_knows() -> None:
    node = Node(
        program=("/opt/bin/qwenctl-node",),
        python="/opt/bin/python",
        config="/etc/qwenctl/node.toml",
        user="qwenctl",
        secret_file="/etc/qwenctl/node.secret",
        state_dir="/var/lib/qwenctl-node",
        log_dir="/var/log/qwenctl-node",
        power_off=False,
        processes=False,
    )
    assert "ExecStart=/opt/bin/python -m gpu_node.watchdog --config" in render(node)[WATCHDOG]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("qwenctl/clouds/aliyun/admin.py", '"-m", "gpu_node.aliyun_stop"'),
        ("qwenctl/cli/setup/init.py", '"-m", "qwenctl.cli.sample"'),
    ],
)
def test_what_we_write_has_the_name_that_every_version_knows(file: str, name: str) -> None:
    assert name in (ROOT / file).read_text()


def test_containers_of_earlier_agents_are_recognised_by_their_labels() -> None:
    assert (GPU_LABEL, SERVICE_LABEL, HASH_LABEL, PROOF_LABEL) == (
        "qwenctl.gpu",
        "qwenctl.service",
        "qwenctl.config-hash",
        "qwenctl.proof",
    )
