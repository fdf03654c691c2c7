"""Progress of weights that the log does not tell of: from the warm-up's own count."""

from __future__ import annotations

import functools
import os
import sys
import threading
from pathlib import Path

import pytest

from gpu_node.services import weights
from gpu_node.services.orphans import OrphanKiller
from gpu_node.services.page_cache import WarmUp, resident_bytes
from gpu_node.services.process import ProcessRuntime
from gpu_node.services.supervisor import Supervisor
from gpu_node.services.weights import WeightsWatch
from qwenctl.protocol.messages import Progress, Readiness, Service
from tests.support.cold_files import MB, make_cold, write
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.waiting import until

PROGRAM = str(ROOT / "tests" / "support" / "service_program.py")


def resident(file: Path) -> int:
    """Bytes of it in the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return resident_bytes(descriptor, 0, file.stat().st_size) or 0
    finally:
        os.close(descriptor)


def test_cold_weights_are_told_of(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 64 * MB)
    make_cold(file)
    told: list[Progress] = []
    watch = WeightsWatch(tmp_path, told.append)
    watch.start()
    assert watch.join(30)
    assert told[-1] == Progress(phase="weights", percent=100, text="0.1 of 0.1 GB read")
    assert resident(file) > 58 * MB


def test_warm_weights_are_not(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 4 * MB)
    for _ in range(5):  # some kernels let go of a few pages at any time
        told: list[Progress] = []
        file.read_bytes()
        watch = WeightsWatch(tmp_path, told.append)
        watch.start()
        assert watch.join(30)
        if not told:
            return
    pytest.fail("told of weights that were in memory")


def test_what_memory_has_no_room_for_is_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service reads it itself, which nobody sees."""
    files = [write(tmp_path / f"{name}.safetensors", 32 * MB) for name in "ab"]
    make_cold(*files)
    monkeypatch.setattr(
        weights, "WarmUp", functools.partial(WarmUp, available=lambda: 40 * MB, reserve=0)
    )
    told: list[Progress] = []
    watch = WeightsWatch(tmp_path, told.append)
    watch.start()
    assert watch.join(30)
    assert told[-1].percent == 50


def test_stopped_it_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cold(write(tmp_path / "a.safetensors", 64 * MB))
    monkeypatch.setattr("gpu_node.services.page_cache.PROGRESS_INTERVAL", 0.0)
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        watch.stop()
        watch.stop()
        told.append(progress)

    monkeypatch.setattr(weights, "WarmUp", functools.partial(WarmUp, threads=1))
    watch = WeightsWatch(tmp_path, tell)
    watch.start()
    assert watch.join(30)
    assert len(told) == 1


def test_without_weights_there_is_nothing_to_do() -> None:
    watch = WeightsWatch("", lambda _: pytest.fail("told"))
    watch.start()
    assert watch.join(0)
    watch.stop()


# ---------------------------------------------------------------- in a supervisor


class Listener:
    def __init__(self) -> None:
        self.told: list[Progress] = []
        self.lines: list[str] = []

    def changed(self) -> None:
        pass

    def progressed(self, service: str, progress: Progress) -> None:
        self.told.append(progress)

    def logged(self, service: str, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("log_tells", [False, True])
def test_a_service_on_its_way_to_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_tells: bool
) -> None:
    """What the disk shows is told if the service's log tells nothing, and only then."""
    model = tmp_path / "model"
    make_cold(write(model / "a.safetensors", 64 * MB))
    listener, orphans = Listener(), OrphanKiller()
    loading = threading.Event()

    def available() -> int:
        # Docker or Python take long to start; here the reading begins only when they have.
        loading.wait(30)
        return 1 << 50

    monkeypatch.setattr(weights, "WarmUp", functools.partial(WarmUp, available=available))
    line = "Loading checkpoint shards:  50%|█████     | 1/2 [00:00<00:00]" if log_tells else "hm"
    port = free_port()
    service = Service(
        command=(sys.executable, PROGRAM, str(port), "--load", "3", "--say", line),
        port=port,
        weights=str(model),
        readiness=Readiness(interval=0.1),
    )
    supervisor = Supervisor(
        service, ProcessRuntime(tmp_path, orphans, "m", os.environ), listener, heartbeat=1.0
    )
    try:
        until(lambda: line in listener.lines, 30.0)
        loading.set()
        until(lambda: supervisor.view.state == "ready", 30.0)
        assert resident(model / "a.safetensors") > 58 * MB
        percents = [one.percent for one in listener.told if one.phase == "weights"]
        assert percents[-1] == (50 if log_tells else 100)
    finally:
        loading.set()
        supervisor.stop()
        assert supervisor.join(30)
        orphans.close()
