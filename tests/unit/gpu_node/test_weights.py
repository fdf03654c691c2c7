"""Progress of weights that the log does not tell of: from the page cache and from what is read."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gpu_node import weights
from gpu_node.guard import Guard
from gpu_node.process import ProcessRuntime
from gpu_node.service import Supervisor
from gpu_node.warmup import WarmUp, weight_files
from gpu_node.weights import WeightsWatch, bytes_read_by, bytes_resident, weights_percent
from qwenctl.wire import Progress, Readiness, Service
from tests.support.cold_files import MB, make_cold, write
from tests.support.net import free_port

PROGRAM = str(Path(__file__).with_name("service_program.py"))


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("total", "seen", "percent"),
    [
        (0, (0,), None),
        (100, (), None),
        (100, (None, None), None),
        (100, (0, None), 0),
        (100, (30, None, 40), 40),
        (100, (None, 250), 100),  # it has read other files too
    ],
)
def test_percent(total: int, seen: tuple[int | None, ...], percent: float | None) -> None:
    assert weights_percent(total, *seen) == percent


def test_what_is_in_the_page_cache(tmp_path: Path) -> None:
    cold, warm = write(tmp_path / "a.bin", 4 * MB), write(tmp_path / "b.bin", 2 * MB)
    make_cold(cold)
    files = weight_files(tmp_path)
    warm.read_bytes()
    assert 1.8 * MB < (bytes_resident(files) or 0) <= 2 * MB
    warm.unlink()
    assert bytes_resident(files) == 0
    cold.unlink()
    assert bytes_resident(files) is None


def test_what_a_process_and_its_children_read_off_the_disk(tmp_path: Path) -> None:
    file = write(tmp_path / "a.bin", 8 * MB)
    make_cold(file)
    child = (
        f"open({str(file)!r}, 'rb').read(); print('read', flush=True); import time; time.sleep(60)"
    )
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"read\n"
            assert (bytes_read_by(process.pid) or 0) >= 8 * MB
        finally:
            for child_process in psutil.Process(process.pid).children(recursive=True):
                child_process.kill()
            process.kill()
    assert bytes_read_by(process.pid) is None


def test_cold_weights_are_told_of(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 64 * MB)
    make_cold(file)
    told: list[Progress] = []
    watch = WeightsWatch(tmp_path, told.append)
    watch.start()
    assert watch.join(30)
    assert told[-1] == Progress(phase="weights", percent=100, text="0.1 of 0.1 GB read")
    assert (bytes_resident(weight_files(tmp_path)) or 0) > 58 * MB


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


def test_what_memory_has_no_room_for_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service reads it itself, and the page cache shows that."""
    files = [write(tmp_path / f"{name}.safetensors", 32 * MB) for name in "ab"]
    make_cold(*files)
    monkeypatch.setattr(weights, "LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(
        weights, "WarmUp", functools.partial(WarmUp, available=lambda: 40 * MB, reserve=0)
    )
    told: list[Progress] = []
    watch = WeightsWatch(tmp_path, told.append, os.getpid)
    watch.start()
    # Not just 50: our own process, which stands for the service, has read other things too.
    wait_for(lambda: told and (told[-1].percent or 0) >= 50)
    assert not watch.join(0.2)
    files[1].read_bytes()
    wait_for(lambda: (told[-1].percent or 0) > 95)
    watch.stop()
    assert watch.join(30)


def test_stopped_it_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.safetensors", 32 * MB)
    make_cold(file)
    monkeypatch.setattr(weights, "LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(weights, "WarmUp", functools.partial(WarmUp, available=lambda: 0))
    told: list[Progress] = []
    watch = WeightsWatch(tmp_path, told.append)
    watch.start()
    wait_for(lambda: told)
    watch.stop()
    watch.stop()
    assert watch.join(30)
    count = len(told)
    time.sleep(0.3)
    assert len(told) == count


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

    def progressed(self, progress: Progress) -> None:
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
    listener, guard = Listener(), Guard()
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
        service, ProcessRuntime(tmp_path, guard, "m", os.environ), listener, heartbeat=1.0
    )
    try:
        wait_for(lambda: line in listener.lines)
        loading.set()
        wait_for(lambda: supervisor.view.state == "ready")
        assert (bytes_resident(weight_files(model)) or 0) > 58 * MB
        percents = [one.percent for one in listener.told if one.phase == "weights"]
        assert percents[-1] == (50 if log_tells else 100)
    finally:
        loading.set()
        supervisor.stop()
        assert supervisor.join(30)
        guard.close()
