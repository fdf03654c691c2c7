"""What a service generates, by its GPUs and by what it says, with a real process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_node.machine import nvidia
from gpu_node.machine.nvidia import GpuWatch, Nvml
from gpu_node.services import evidence
from gpu_node.services.orphans import OrphanKiller
from gpu_node.services.process import ProcessRuntime
from gpu_node.services.supervisor import Supervisor
from qwenctl.protocol.messages import Activity, Container, Progress, Readiness, Service
from tests.support.net import free_port
from tests.support.nvml_library import A10, H100, NvmlLibrary
from tests.support.paths import ROOT
from tests.support.waiting import until

PROGRAM = str(ROOT / "tests" / "support" / "service_program.py")


class Listener:
    """Waits for what the supervisor comes to."""

    def __init__(self) -> None:
        self.news = threading.Condition()
        self.progress: list[str] = []

    def changed(self) -> None:
        with self.news:
            self.news.notify_all()

    def progressed(self, service: str, progress: Progress) -> None:
        self.progress.append(progress.text)
        self.changed()

    def logged(self, service: str, text: str) -> None:
        pass

    def wait(self, what: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(what, 30)


Start = Callable[..., tuple[Supervisor, Listener]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> NvmlLibrary:
    library = NvmlLibrary(H100, A10)  # 37 % and 0 %
    library.install(monkeypatch)
    monkeypatch.setattr(nvidia, "FRESH", 0.0)
    return library


@pytest.fixture
def start(tmp_path: Path, library: NvmlLibrary) -> Iterator[Start]:
    orphans = OrphanKiller()
    started: list[Supervisor] = []

    def make(service: Service, until_ready: bool = True) -> tuple[Supervisor, Listener]:
        listener = Listener()
        runtime = ProcessRuntime(tmp_path, orphans, "mark", os.environ)
        gpus = GpuWatch(Nvml().read)
        started.append(Supervisor(service, runtime, listener, heartbeat=0.05, gpus=gpus))
        if until_ready:
            listener.wait(lambda: started[-1].view.state == "ready")
        return started[-1], listener

    yield make
    for supervisor in started:
        supervisor.stop()
        assert supervisor.join(30)
        assert supervisor.active == 0
    orphans.close()


def service(activity: Activity, *options: str, **more: Any) -> Service:
    port = free_port()
    command = (sys.executable, PROGRAM, str(port), *options)
    readiness = Readiness(interval=0.1)
    return Service(command=command, port=port, readiness=readiness, activity=activity, **more)


def test_a_busy_gpu_is_a_generation_until_it_rests(start: Start, library: NvmlLibrary) -> None:
    running, listener = start(service(Activity(gpu_percent=30, gpu_samples=2)))
    listener.wait(lambda: running.active == 1)
    library.devices = (A10, A10)
    listener.wait(lambda: running.active == 0)


def test_a_gpu_of_somebody_else_is_none(start: Start, library: NvmlLibrary) -> None:
    container = Container(image="none", gpus=("1",))
    running, listener = start(service(Activity(gpu_percent=30, gpu_samples=2), container=container))
    wait_for_readings(library, 20)
    assert running.active == 0
    library.devices = (A10, H100)
    listener.wait(lambda: running.active == 1)


def test_what_it_says_and_its_gpu_both_count(
    start: Start, library: NvmlLibrary, tmp_path: Path
) -> None:
    (tmp_path / "active").write_text("3")
    activity = Activity(path="/active", gpu_percent=30, gpu_samples=2)
    running, listener = start(service(activity, "--active", str(tmp_path / "active")))
    listener.wait(lambda: running.active == 3)
    wait_for_readings(library, 10)
    assert running.active == 3  # the larger one, not the sum
    (tmp_path / "active").write_text("0")
    until(lambda: running.active == 1, 30.0)  # the GPU is still busy: no change for the listener
    library.devices = (A10,)
    listener.wait(lambda: running.active == 0)


def test_without_a_threshold_the_gpus_are_not_asked(
    start: Start, library: NvmlLibrary, tmp_path: Path
) -> None:
    (tmp_path / "active").write_text("2")
    running, listener = start(
        service(Activity(path="/active"), "--active", str(tmp_path / "active"))
    )
    listener.wait(lambda: running.active == 2)
    assert library.calls == []


@pytest.mark.parametrize("taken_up", [False, True])
def test_only_one_that_was_taken_up_while_it_generates_needs_no_first_inference(
    taken_up: bool, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_node.services.process.ServiceProcess.taken_up", taken_up)
    (tmp_path / "active").write_text("1")
    activity = Activity(path="/active")
    asked = service(activity, "--active", str(tmp_path / "active"))
    # This program takes no POST at all.
    readiness = asked.readiness.model_copy(update={"inference": "openai", "model": "any"})
    running, listener = start(asked.model_copy(update={"readiness": readiness}), taken_up)
    if not taken_up:
        # What it says that it does may be our own inference, which hangs.
        listener.wait(lambda: any("answered 501" in text for text in listener.progress))
        assert running.view.state == "starting"


def wait_for_readings(library: NvmlLibrary, count: int) -> None:
    """Wait for so many heartbeats: each takes a reading of its own."""
    first = library.calls.count("nvmlDeviceGetCount_v2")
    until(lambda: library.calls.count("nvmlDeviceGetCount_v2") >= first + count, 30.0)


def test_a_claim_that_leaves_no_trace_is_doubted_and_said(
    start: Start, library: NvmlLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "STUCK", 0.6)
    monkeypatch.setattr(evidence, "CURIOUS", 0.2)
    claim = tmp_path / "active"
    claim.write_text("1")
    activity = Activity(path="/active")
    container = Container(image="x", gpus=("1",))  # idle
    described = service(activity, "--active", str(claim)).model_copy(
        update={"container": container}
    )
    running, listener = start(described)
    listener.wait(lambda: running.active == 1)
    listener.wait(lambda: running.active == 0)
    assert "no GPU has worked" in running.view.doubt
    assert running.doubted
    claim.write_text("2")
    listener.wait(lambda: running.active == 2)
    assert running.view.doubt == ""


def test_a_service_that_hangs_is_told_and_stays_ready(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MUTE", 0.3, raising=False)
    quick = service(Activity())
    readiness = Readiness(interval=0.1, timeout=0.1)
    running, _ = start(quick.model_copy(update={"readiness": readiness}))
    pid = next(int(word) for word in running.view.detail.split() if word.isdigit())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: "has not answered GET / for" in running.view.doubt)
        assert (running.view.state, running.doubted) == ("ready", False)
        assert "`qwenctl restart`" in running.view.doubt
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not running.view.doubt)
