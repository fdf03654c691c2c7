"""What a service cannot be started for want of, by the words of Docker and the NVIDIA tools."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_node.services import awaited, supervisor
from gpu_node.services.awaited import lack_in_output, lack_of
from gpu_node.services.docker_errors import start_error_text
from gpu_node.services.runtime import StartFailed
from gpu_node.services.supervisor import Supervisor, _Waiting
from qwenctl.protocol.messages import Progress, Service
from tests.support.waiting import until

HOOK = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: error during container init: error "
    "running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy' "
    "nvidia-container-cli: "
)
NOT_LOADED = HOOK + "initialization error: nvml error: driver not loaded: unknown"
NO_LIBRARY = (
    HOOK + "initialization error: load library failed: libnvidia-ml.so.1: cannot open shared "
    "object file: no such file or directory: unknown"
)
MISMATCH = HOOK + "initialization error: nvml error: driver/library version mismatch: unknown"
NO_DRIVER_OF_DOCKER = 'could not select device driver "" with capabilities: [[gpu]]'


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (NOT_LOADED, "the NVIDIA driver"),
        (NO_LIBRARY, "the NVIDIA driver"),
        ("Failed to initialize NVML: Driver Not Loaded", "the NVIDIA driver"),
        (
            'while adding custom device "/dev/nvidia0": no such file or directory',
            "the NVIDIA driver",
        ),
        ("stat /dev/nvidiactl: no such file or directory", "the NVIDIA driver"),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all",
            "the CDI description of the GPUs",
        ),
        (NO_DRIVER_OF_DOCKER, "nvidia-container-toolkit"),
        ("Docker does not answer: No such file or directory; is it installed", "Docker"),
        (
            "the image r/b:1 cannot be pulled: lookup r on 127.0.0.53:53: server misbehaving",
            "the network and its name service",
        ),
    ],
)
def test_what_may_come_is_waited_for(problem: str, name: str) -> None:
    lack = lack_of(problem)
    assert lack is not None
    assert (lack.name, lack.comes) == (name, True)


@pytest.mark.parametrize(
    "problem",
    [
        MISMATCH,
        HOOK + "device error: 7: unknown device: unknown",
        "Docker does not answer: Permission denied; is it installed, running, and may this user",
        "the registry has no image a/b:1",
        "exit code 1",
    ],
)
def test_what_does_not_come_is_not(problem: str) -> None:
    lack = lack_of(problem)
    assert lack is None or not lack.comes


@pytest.mark.parametrize(
    ("problem", "advice", "not_said"),
    [
        (NOT_LOADED, "nvidia-smi", "install nvidia-container-toolkit"),
        (MISMATCH, "stop and start the instance", "install nvidia-container-toolkit"),
        (HOOK + "device error: 7: unknown device: unknown", "correct `gpus`", "install"),
        (NO_DRIVER_OF_DOCKER, "install nvidia-container-toolkit", "nvidia-smi"),
    ],
)
def test_the_advice_fits(problem: str, advice: str, not_said: str) -> None:
    said = start_error_text(Exception(problem), Service())
    assert advice in said
    assert not_said not in said


def test_output_counts_only_where_the_driver_is_missing_indeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "RuntimeError: Found no NVIDIA driver on your system."
    monkeypatch.setattr(awaited, "DRIVER", tmp_path / "version")
    assert lack_in_output(said)
    assert lack_in_output("CUDA out of memory") is None
    (tmp_path / "version").touch()
    assert lack_in_output(said) is None


def test_the_patience_is_of_all_that_lacks_together() -> None:
    now = 0.0
    waiting = _Waiting(100.0, lambda: now)
    driver, toolkit = lack_of(NOT_LOADED), lack_of(NO_DRIVER_OF_DOCKER)
    pauses = []
    for moment in (0.0, 1.0, 2.0, 50.0, 60.0):
        now = moment
        pauses.append(waiting.pause(driver, 5))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert waiting.text == "waiting for the NVIDIA driver, for 60 s now"
    now = 99.0
    assert waiting.pause(toolkit, 5) > 0
    now = 100.0
    assert waiting.pause(driver, 5) == waiting.pause(toolkit, 5) == 0.0
    assert waiting.pause(None, 5) == 0.0
    assert waiting.pause(driver, 0) > 0
    assert waiting.pause(toolkit, 0) == 0.0
    long = _Waiting(1200.0, lambda: now)
    assert long.pause(toolkit, 5) > 0
    now += 300.0
    assert long.pause(toolkit, 5) == 0.0


class _Events:
    def __init__(self) -> None:
        self.said: list[Progress] = []

    def changed(self) -> None: ...

    def progressed(self, service: str, progress: Progress) -> None:
        self.said.append(progress)

    def logged(self, service: str, text: str) -> None: ...


class _Late:
    """A runtime that lacks the driver until it has been tried some times."""

    outlives_agent = False

    def __init__(self, tries: int) -> None:
        self.left = tries
        self.started = threading.Event()

    def settle(self, names: Any) -> None: ...

    def start(self, service: Service, output: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise StartFailed(start_error_text(Exception(NOT_LOADED), service))
        self.started.set()
        raise StartFailed("it has come", final=True)


def test_a_late_driver_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_WAIT", 0.01)
    events, runtime = _Events(), _Late(30)
    running = Supervisor(Service(max_restarts=5), runtime, events, 1.0)
    assert runtime.started.wait(10.0)
    until(lambda: running.view.state == "failed")
    assert running.view.error == "webui: it has come"
    assert running.view.restarts == 0
    assert any(said.text == "webui: waiting for the NVIDIA driver" for said in events.said)


def test_a_driver_that_never_comes_fails_with_the_right_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(supervisor, "FIRST_RESTART", 0.01)
    began = time.monotonic()
    running = Supervisor(Service(max_restarts=1), _Late(10**6), _Events(), 1.0, patience=0.3)
    until(lambda: running.view.state == "failed")
    assert time.monotonic() - began >= 0.3
    assert "nvidia-smi" in running.view.error
    assert "install nvidia-container-toolkit" not in running.view.error
