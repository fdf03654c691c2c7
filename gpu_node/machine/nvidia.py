"""Read figures of the GPUs from NVML, the NVIDIA driver's own library.

`Nvml` reads, and handles every error of a machine without a driver, a broken driver or a lost GPU.
`GpuWatch` reads in a thread of its own: an NVML call into a broken driver may never return.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwenctl.lib.extras import how_to_install
from qwenctl.protocol.messages import MAX_GPUS, MOST, GpuFigures

FRESH = 1.0
"""Seconds for which a reading counts as fresh."""

PATIENCE = 0.1
"""Seconds that a heartbeat waits for a reading at most; a healthy driver takes milliseconds."""

SILENT = 5.0
"""Seconds after which the driver is reported as silent; loading it, without persistence mode, takes
some."""

RETRY = 30.0
"""Seconds from a failure of the driver to the next attempt."""


class Reading(NamedTuple):
    """NVML's figures at one moment, and why some are missing, for a person."""

    gpus: tuple[GpuFigures, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class GpuView:
    """The last reading, and its age in seconds (None: there is none)."""

    gpus: tuple[GpuFigures, ...]
    note: str
    age: float | None


class GpuWatch:
    """Returns the last known figures without waiting for the driver.

    Each reading has a thread of its own; while a reading hangs in the driver, no other is started.
    Safe to use from several threads.

    Args:
        read: takes a reading; may take long, must not raise.
    """

    def __init__(self, read: Callable[[], Reading] | None = None) -> None:
        self._read = read or Nvml().read
        self._news = threading.Condition()
        self._reading = Reading()
        self._read_at: float | None = None
        self._asked_at: float | None = None  # set while a reading is under way

    def look(self, patience: float | None = None) -> GpuView:
        """Return the last known figures: fresh ones if the driver gives them within ``patience``
        seconds (default: `PATIENCE`)."""
        with self._news:
            now = time.monotonic()
            fresh = self._read_at is not None and now - self._read_at < FRESH
            if not fresh and self._asked_at is None:
                self._asked_at = now
                try:
                    threading.Thread(target=self._refresh, name="nvml", daemon=True).start()
                except RuntimeError:  # the machine has no thread left; the next look tries again
                    self._asked_at = None
            if self._asked_at is not None:
                left = self._asked_at + (PATIENCE if patience is None else patience) - now
                self._news.wait_for(lambda: self._asked_at is None, max(0.0, left))
            return self._view(time.monotonic())

    def _view(self, now: float) -> GpuView:
        note = self._reading.note
        waited = 0.0 if self._asked_at is None else now - self._asked_at
        if waited >= SILENT:
            note = f"the NVIDIA driver has not answered for {waited:.0f} s"
        elif self._read_at is None:
            note = "the NVIDIA driver has not answered yet"
        age = None if self._read_at is None else now - self._read_at
        return GpuView(self._reading.gpus, note, age)

    def _refresh(self) -> None:
        reading = self._read()
        with self._news:
            self._reading, self._read_at = reading, time.monotonic()
            self._asked_at = None
            self._news.notify_all()


class _Unusable(Exception):
    """NVML cannot be used; the text says why, for a person."""


class Nvml:
    """Reads all GPUs and MIG devices. For one thread at a time.

    NVML is initialised again, at most each `RETRY` seconds, after a failure of the whole driver and
    while a GPU is lost: a driver may be reloaded, or come up late in the boot.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lib: Any = None  # the module pynvml, while NVML is initialised
        self._retry_at = float("-inf")
        self._troubled = False
        self._note = ""

    def read(self) -> Reading:
        """Return all figures that NVML has now. Never raises."""
        if self._clock() >= self._retry_at:
            if self._troubled:
                self._let_go()
        elif self._lib is None:
            return Reading(note=self._note)
        try:
            if self._lib is None:
                self._retry_at = self._clock() + RETRY
                self._lib = _begin()
            gpus = tuple(self._all())[:MAX_GPUS]
            self._troubled = any(gpu.error for gpu in gpus) or not gpus
            return Reading(
                gpus, "" if gpus else "no NVIDIA GPU on this machine: its driver has none"
            )
        except _Unusable as reason:
            self._note = str(reason)[:300]
        except Exception as error:  # a library of another version may answer with anything
            self._note = f"NVML cannot be read: {type(error).__name__}: {error}"[:300]
        self._let_go()
        return Reading(note=self._note)

    def _let_go(self) -> None:
        """Shut NVML down, so that the next reading initialises it again."""
        lib, self._lib, self._troubled = self._lib, None, False
        if lib is not None:
            try:
                lib.nvmlShutdown()
            except lib.NVMLError:  # it is gone already
                pass

    def _all(self) -> Iterator[GpuFigures]:
        lib = self._lib
        try:
            count = lib.nvmlDeviceGetCount()
        except lib.NVMLError as error:
            raise _unusable(lib, error) from None
        for index in range(count):
            try:
                # As a list: of a GPU that is lost half way only the error is kept.
                found = list(self._gpu(index))
            except lib.NVMLError as error:
                if error.value in _of_driver(lib):
                    raise _unusable(lib, error) from None
                found = [GpuFigures(index=str(index), error=_gpu_words(lib, error))]
            yield from found

    def _gpu(self, index: int) -> Iterator[GpuFigures]:
        """Yield a GPU and its MIG devices."""
        lib, ask = self._lib, self._ask
        handle = lib.nvmlDeviceGetHandleByIndex(index)
        gpu = self._figures(handle, index=str(index))
        yield gpu
        mode = ask("nvmlDeviceGetMigMode", handle)
        if mode is None or mode[0] != lib.NVML_DEVICE_MIG_ENABLE:
            return
        for number in range(ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            # Some places have no device: their error is NOT_FOUND.
            device = ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if device is not None:
                yield self._figures(device, index=f"{index}:{number}", mig_parent=gpu.uuid)

    def _figures(self, handle: Any, *, index: str, mig_parent: str = "") -> GpuFigures:
        ask, sensor = self._ask, self._lib.NVML_TEMPERATURE_GPU
        memory = ask("nvmlDeviceGetMemoryInfo", handle)
        load = ask("nvmlDeviceGetUtilizationRates", handle)
        temperature = ask("nvmlDeviceGetTemperature", handle, sensor)
        if temperature is None:  # its name from CUDA 14 on
            temperature = ask("nvmlDeviceGetTemperatureV", handle, sensor)
        power = ask("nvmlDeviceGetPowerUsage", handle)
        limit = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        return GpuFigures(
            index=index,
            uuid=_text(ask("nvmlDeviceGetUUID", handle)),
            name=_text(ask("nvmlDeviceGetName", handle)),
            mig_parent=mig_parent,
            utilisation_percent=None if load is None else min(load.gpu, 100),
            memory_used=_known(memory and memory.used),
            memory_total=_known(memory and memory.total),
            temperature=temperature,
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
        )

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Call pynvml; return None if this GPU, driver or version of pynvml has no such value.

        Raises:
            NVMLError: the GPU, or the driver, is gone.
        """
        lib = self._lib
        try:
            return getattr(lib, name)(*arguments)
        except (AttributeError, UnicodeDecodeError):
            return None
        except lib.NVMLError as error:
            if error.value in (*_of_driver(lib), *_of_gpu(lib)):
                raise
            return None


def _begin() -> Any:
    """Initialise NVML; return the module pynvml.

    Raises:
        _Unusable: it cannot be.
    """
    try:
        import pynvml
    except ImportError:
        raise _Unusable(
            f"GPU figures need the Python package nvidia-ml-py: {how_to_install('node')}"
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _unusable(pynvml, error) from None
    return pynvml


def _of_driver(lib: Any) -> tuple[int, ...]:
    """Errors after which NVML must be initialised again."""
    return (
        lib.NVML_ERROR_UNINITIALIZED,
        lib.NVML_ERROR_DRIVER_NOT_LOADED,
        lib.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def _of_gpu(lib: Any) -> tuple[int, ...]:
    """Errors after which this GPU has no more figures."""
    return (lib.NVML_ERROR_GPU_IS_LOST, lib.NVML_ERROR_RESET_REQUIRED)


def _unusable(lib: Any, error: Any) -> _Unusable:
    words = {
        lib.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver on this machine: libnvidia-ml.so.1 is not there",
        lib.NVML_ERROR_DRIVER_NOT_LOADED: "no NVIDIA driver on this machine: its kernel module is not loaded",
        lib.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was changed under us: its library and its "
        "kernel module are of different versions; reboot the machine",
        lib.NVML_ERROR_NO_PERMISSION: "the agent may not ask the NVIDIA driver: no access to /dev/nvidia*",
        lib.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver was reloaded; it is asked again in a moment",
        lib.NVML_ERROR_GPU_IS_LOST: "a GPU is lost: it has fallen off the bus; stop and start the instance",
    }
    return _Unusable(words.get(error.value, f"the NVIDIA driver cannot be used: {error}"))


def _gpu_words(lib: Any, error: Any) -> str:
    if error.value == lib.NVML_ERROR_GPU_IS_LOST:
        return "lost: it has fallen off the bus; stop and start the instance"
    if error.value == lib.NVML_ERROR_RESET_REQUIRED:
        return "it needs a reset: stop and start the instance"
    return f"cannot be read: {error}"[:200]


def _known(value: int | None) -> int | None:
    """Return a figure; None for NVML_VALUE_NOT_AVAILABLE, which is all ones."""
    return value if value is not None and value <= MOST else None


def _text(value: Any) -> str:
    """Return a name of NVML in printable ASCII, at most 100 characters."""
    return "".join(c for c in str(value or "") if " " <= c <= "~")[:100]
