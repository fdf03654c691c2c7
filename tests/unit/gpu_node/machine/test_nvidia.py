"""GPU figures, from a C library that answers as the driver does on real machines."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pynvml
import pytest

from gpu_node.machine import nvidia
from gpu_node.machine.nvidia import GpuWatch, Nvml, Reading
from gpu_node.machine.resources import read_resources
from qwenctl.lib.extras import how_to_install
from qwenctl.protocol.messages import MAX_GPUS, MAX_MESSAGE_BYTES, GpuFigures, Report, Resources
from tests.support.nvml_library import A10, A100_MIG, H100, NvmlLibrary
from tests.support.waiting import until

# What goes wrong in the stand-in's C functions would go unseen.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

ERRORS = sorted(v for k, v in vars(pynvml).items() if k.startswith("NVML_ERROR_"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(*devices: Any) -> NvmlLibrary:
        library = NvmlLibrary(*devices)
        library.install(monkeypatch)
        return library

    return put


def test_an_h100(install: Any) -> None:
    install(H100)
    assert Nvml().read() == Reading(
        (
            GpuFigures(
                index="0",
                uuid="GPU-4d1e2c3a-8a6b-5f0e-9c57-2f6f3c1b7a90",
                name="NVIDIA H100 80GB HBM3",
                utilisation_percent=37,
                memory_used=44_163_923_968,
                memory_total=85_520_809_984,
                temperature=61,
                power=310.244,
                power_limit=700,
            ),
        ),
        "",
    )


def test_what_a_gpu_or_its_driver_does_not_tell_is_none(install: Any) -> None:
    library = install(A10.failing(nvmlDeviceGetPowerUsage=pynvml.NVML_ERROR_NOT_SUPPORTED))
    library.missing = {"nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTemperature"}
    ((gpu,), note) = Nvml().read()
    assert (gpu.name, gpu.utilisation_percent, note) == ("NVIDIA A10", 0, "")
    assert (gpu.power, gpu.power_limit, gpu.temperature, gpu.error) == (None, None, None, "")


def test_mig_devices_follow_their_gpu_and_the_driver_tells_no_load(install: Any) -> None:
    install(H100, A100_MIG)
    ((first, parent, *parts), note) = Nvml().read()
    assert (first.utilisation_percent, note) == (37, "")
    assert (parent.index, parent.utilisation_percent, parent.power) == ("1", None, 51.23)
    # Only places that are taken; their numbers are those of the places, as Docker wants them.
    assert [part.index for part in parts] == ["1:0", "1:2"]
    assert {part.mig_parent for part in parts} == {parent.uuid}
    assert {part.memory_total for part in parts} == {5_100_273_664}
    assert [part.uuid[:8] for part in parts] == ["MIG-8c4c", "MIG-1d89"]
    told = {(part.utilisation_percent, part.temperature, part.power) for part in parts}
    assert told == {(None, None, None)}


@pytest.mark.parametrize("where", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetPowerUsage"])
def test_a_lost_gpu_is_said_and_the_other_goes_on(where: str, install: Any) -> None:
    install(H100.failing(**{where: pynvml.NVML_ERROR_GPU_IS_LOST}), A10)
    (lost, well), note = Nvml().read()
    assert lost == GpuFigures(
        index="0", error="lost: it has fallen off the bus; stop and start the instance"
    )
    assert (well.index, well.name, well.temperature, note) == ("1", "NVIDIA A10", 34, "")


def test_a_mig_gpu_lost_half_way_leaves_no_devices(install: Any) -> None:
    lost = {"nvmlDeviceGetMigDeviceHandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST}
    install(A100_MIG.failing(**lost))
    ((gpu,), _) = Nvml().read()
    assert gpu.error.startswith("lost")


def test_while_a_gpu_is_lost_nvml_is_begun_anew_each_half_minute(
    install: Any, clock: Clock
) -> None:
    library = install(H100.failing(nvmlDeviceGetName=pynvml.NVML_ERROR_RESET_REQUIRED))
    nvml = Nvml(clock)
    for _ in range(90):
        ((gpu,), _) = nvml.read()
        assert gpu.error == "it needs a reset: stop and start the instance"
        assert library.open == 1
        clock.now += 1
    assert library.calls.count("nvmlInitWithFlags") == 3
    library.devices = (H100,)
    ((gpu,), _) = nvml.read()
    assert gpu.error == ""


def test_no_driver(install: Any) -> None:
    install().missing = {"dlopen"}
    note = "no NVIDIA driver on this machine: libnvidia-ml.so.1 is not there"
    assert Nvml().read() == Reading((), note)


def test_no_python_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus, note = Nvml().read()
    assert gpus == ()
    assert how_to_install("node") in note


def test_a_driver_without_a_gpu(install: Any) -> None:
    install()
    assert Nvml().read() == Reading((), "no NVIDIA GPU on this machine: its driver has none")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "its kernel module is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot the machine"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no access to /dev/nvidia"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "fallen off the bus"),
        (pynvml.NVML_ERROR_UNKNOWN, "the NVIDIA driver cannot be used: Unknown Error"),
    ],
)
def test_a_driver_that_cannot_be_used_is_tried_each_half_minute(
    code: int, words: str, install: Any, clock: Clock
) -> None:
    library = install(H100)
    library.errors = {"nvmlInitWithFlags": code}
    nvml = Nvml(clock)
    for clock.now in (0.0, 10.0, 29.9):
        gpus, note = nvml.read()
        assert gpus == ()
        assert words in note
    assert library.calls == ["nvmlInitWithFlags"]
    library.errors = {}
    clock.now = 30.0
    assert len(nvml.read().gpus) == 1


def test_a_driver_that_is_reloaded_is_begun_anew(install: Any, clock: Clock) -> None:
    library = install(H100)
    nvml = Nvml(clock)
    assert nvml.read().gpus
    clock.now = 100.0
    library.errors = {"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_UNINITIALIZED}
    assert nvml.read() == Reading(
        (), "the NVIDIA driver was reloaded; it is asked again in a moment"
    )
    assert library.open == 0
    library.errors = {"nvmlInitWithFlags": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
    clock.now = 101.0
    assert "kernel module is not loaded" in nvml.read().note
    library.errors = {}
    clock.now = 130.0
    assert nvml.read().gpus == ()
    clock.now = 131.0
    assert nvml.read().gpus
    assert library.open == 1


@pytest.mark.parametrize("devices", [(H100,), (A100_MIG, A10)])
def test_no_error_of_any_function_is_raised_or_leaks(
    devices: Any, install: Any, clock: Clock
) -> None:
    library = install(*devices)
    nvml = Nvml(clock)
    nvml.read()
    functions = set(library.calls) | {"nvmlShutdown"}
    assert len(functions) >= 12
    for function in sorted(functions):
        for code in (*ERRORS, 12345):
            library.errors = {function: code}
            reading = nvml.read()
            assert reading.gpus or reading.note
            clock.now += 31
            nvml.read()
            # One that cannot be shut down stays open, in the driver's own count.
            assert library.open <= 1 or function == "nvmlShutdown"
            library.errors = {}
            clock.now += 31
            nvml.read()
            assert nvml.read().gpus[0].error == ""


def test_a_name_that_is_no_text_is_none(install: Any) -> None:
    install(replace(H100, name="\udcff\udcfe"))
    ((gpu,), note) = Nvml().read()
    assert (gpu.name, gpu.memory_total, note) == ("", 85_520_809_984, "")


# The watch over it


class Driver:
    """A reader that hangs as long as it is told to."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked = 0

    def __call__(self) -> Reading:
        self.asked += 1
        assert self.may_answer.wait(60)
        return Reading((GpuFigures(index=str(self.asked)),), "")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "FRESH", 0.0)
    monkeypatch.setattr(nvidia, "PATIENCE", 0.05)
    monkeypatch.setattr(nvidia, "SILENT", 0.2)


def nvml_threads() -> int:
    return sum(thread.name == "nvml" for thread in threading.enumerate())


@pytest.mark.usefixtures("impatient")
def test_a_driver_that_hangs_holds_up_nobody() -> None:
    driver = Driver()
    watch = GpuWatch(driver)
    try:
        first = watch.look()
        assert (first.gpus, first.age) == ((), None)
        assert first.note == "the NVIDIA driver has not answered yet"
        until(lambda: "has not answered for" in watch.look().note, 20.0)
        for _ in range(50):
            watch.look()
        assert (driver.asked, nvml_threads()) == (1, 1)
    finally:
        driver.may_answer.set()
    until(lambda: watch.look().gpus, 20.0)
    until(lambda: watch.look().note == "", 20.0)


def test_who_may_wait_waits_for_the_first_reading() -> None:
    driver = Driver()
    threading.Timer(1.0, driver.may_answer.set).start()
    assert GpuWatch(driver).look(patience=30.0).gpus


@pytest.mark.usefixtures("impatient")
def test_the_last_known_figures_are_told_with_their_age() -> None:
    driver = Driver()
    driver.may_answer.set()
    watch = GpuWatch(driver)
    until(lambda: watch.look().gpus, 20.0)
    driver.may_answer.clear()
    try:
        asked = driver.asked
        until(lambda: (watch.look(), driver.asked > asked)[1], 20.0)
        known = watch.look().gpus
        until(lambda: "has not answered for" in watch.look().note, 20.0)
        view = watch.look()
        assert view.gpus == known != ()
        assert view.age is not None
        assert view.age >= 0.2
        sent = read_resources("/", watch)
        assert (sent.gpus, sent.gpu_note[:17]) == (known, "the NVIDIA driver")
        assert sent.gpus_age is not None
        assert sent.gpus_age >= view.age
    finally:
        driver.may_answer.set()


def test_a_reading_serves_all_who_ask_within_a_second() -> None:
    driver = Driver()
    driver.may_answer.set()
    watch = GpuWatch(driver)
    until(lambda: watch.look().gpus, 20.0)
    asked, read_at = driver.asked, time.monotonic()
    for _ in range(20):
        watch.look()
    assert driver.asked == asked or time.monotonic() - read_at >= 0.5


def test_a_machine_without_a_thread_left_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    driver.may_answer.set()
    watch = GpuWatch(driver)

    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        assert watch.look().note == "the NVIDIA driver has not answered yet"
    until(lambda: watch.look().gpus, 20.0)


# On the wire


def test_resources_say_what_the_machine_has(install: Any) -> None:
    install(H100)
    watch = GpuWatch()
    until(lambda: watch.look().gpus, 20.0)
    told = read_resources("/", watch)
    assert [gpu.name for gpu in told.gpus] == ["NVIDIA H100 80GB HBM3"]
    assert told.gpu_note == ""
    assert told.disk_used_percent is not None
    assert told.disk_free
    assert read_resources("/does/not/exist", watch).disk_used_percent is None


def test_a_report_full_of_gpus_fits_into_a_message() -> None:
    gpu = GpuFigures(
        index="9" * 16,
        uuid="u" * 100,
        name="n" * 100,
        mig_parent="p" * 100,
        utilisation_percent=99.123456789012,
        memory_used=2**60,
        memory_total=2**60,
        temperature=61.123456789012,
        power=310.123456789012,
        power_limit=700.123456789012,
        error="e" * 200,
    )
    told = Resources(gpus=(gpu,) * MAX_GPUS, gpu_note="n" * 300)
    assert len(told.model_dump_json()) < MAX_MESSAGE_BYTES / 2
    with pytest.raises(ValueError, match="gpus"):
        Resources(gpus=(gpu,) * (MAX_GPUS + 1))


def test_more_gpus_than_a_report_holds_are_left_out(install: Any) -> None:
    install(*(H100,) * (MAX_GPUS + 5))
    assert len(Nvml().read().gpus) == MAX_GPUS


def test_reports_of_other_versions_are_understood() -> None:
    plain = {"gpu": "main", "boot_id": "boot-0001", "start_seq": 1, "state": "ready"}
    earlier = {"cpu_percent": 1.0, "memory_used": 1, "memory_total": 2, "disk_free": 3, "gpus": []}
    assert Report.model_validate({**plain, "resources": earlier}).resources.gpus == ()
    later = {"gpus": [{"index": "0", "name": "NVIDIA B300", "fan_percent": 40}], "more": 1}
    (gpu,) = Report.model_validate({**plain, "resources": later}).resources.gpus
    assert gpu.name == "NVIDIA B300"
