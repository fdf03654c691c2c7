"""The agent on a real disk without room: it works on, counts on, and says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess, service, spec
from tests.support.other_user import needs_root
from tests.support.stand_in_proxy import StandInProxy

pytestmark = needs_root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB for state and logs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine cannot mount a disk of its own")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "junk").open("ab", buffering=0) as junk:
        while True:
            junk.write(b"x" * 4096)


def agent(disk: Path, proxy: StandInProxy) -> AgentProcess:
    directory = disk.parent
    settings = {"STATE_DIR": str(disk / "state"), "LOG_DIR": str(disk / "logs")}
    return AgentProcess(directory, [proxy.url], **settings)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_ends_nothing_and_is_said(disk: Path, proxy: StandInProxy, when: str) -> None:
    proxy.spec = spec(service("--say", "x" * 100), dead_man=3.0)
    for name in ("state", "logs"):
        (disk / name).mkdir()
    if when == "before":
        fill(disk)
    running = agent(disk, proxy)
    try:
        proxy.wait_report(lambda r: r.state == "ready")
        if when == "during":
            fill(disk)
        proxy.forget()
        time.sleep(4.0)  # longer than the dead man's limit: contact counts without a disk
        assert running.process.poll() is None
        assert proxy.reports[-1].state == "ready"
        assert proxy.reports[-1].resources.disk_free == 0
        proxy.spec = spec(service(), version="2", dead_man=2.0)
        proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready", timeout=20)
        assert "No space left on device" in running.log
        assert "Traceback" not in running.log
        # Nobody is there any more: it goes off all the same.
        proxy.close()
        assert running.process.wait(30) == 70
    finally:
        running.process.kill()
        running.process.wait()
        for process in running.mine():
            process.kill()
    assert os.statvfs(disk).f_bavail == 0
