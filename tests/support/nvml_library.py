"""A stand-in for libnvidia-ml.so.1: real C functions that fill in the C structs they are handed.

The answers are those of real machines: sizes and limits as the driver gives them, NOT_SUPPORTED and
NOT_FOUND where it does. pynvml calls them through ctypes, as it calls the driver's own.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_int, c_uint, c_void_p, cast, memmove
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

__all__ = ["A10", "A100_MIG", "H100", "Device", "NvmlLibrary"]

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
NOT_FOUND = pynvml.NVML_ERROR_NOT_FOUND
INVALID_ARGUMENT = pynvml.NVML_ERROR_INVALID_ARGUMENT


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG device. None: the driver answers NOT_SUPPORTED."""

    name: str
    uuid: str
    memory: tuple[int, int]
    """Used and total, in bytes."""
    load: int | None = None
    temperature: int | None = None
    power: int | None = None
    """In milliwatts, as the next."""
    power_limit: int | None = None
    mig_mode: int | None = None
    places: tuple[Device | None, ...] = ()
    """For MIG devices; None: there is none at this place."""
    errors: dict[str, int] = field(default_factory=dict)
    """Functions that fail for this one, whatever else is set."""

    def failing(self, **errors: int) -> Device:
        return replace(self, errors=errors)


H100 = Device(
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-4d1e2c3a-8a6b-5f0e-9c57-2f6f3c1b7a90",
    memory=(44_163_923_968, 85_520_809_984),
    load=37,
    temperature=61,
    power=310_244,
    power_limit=700_000,
    mig_mode=pynvml.NVML_DEVICE_MIG_DISABLE,
)
A10 = Device(
    name="NVIDIA A10",
    uuid="GPU-0b7b9d5e-33a1-1d2f-7c40-6d1f5f0a2e11",
    memory=(478_150_656, 24_146_608_128),
    load=0,
    temperature=34,
    power=16_012,
    power_limit=150_000,
)
_SLICE = Device(
    name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    uuid="MIG-8c4c5a27-e508-5556-b2ea-7e549465741e",
    memory=(13_631_488, 5_100_273_664),
    # The driver does not take a MIG device's handle for these.
    errors={"nvmlDeviceGetTemperature": INVALID_ARGUMENT, "nvmlDeviceGetMigMode": INVALID_ARGUMENT},
)
A100_MIG = Device(
    name="NVIDIA A100-SXM4-40GB",
    uuid="GPU-d8d7e984-7a52-6ad0-676c-222f4be482b9",
    memory=(14_987_362_304, 42_505_273_344),
    temperature=29,
    power=51_230,
    power_limit=400_000,
    mig_mode=pynvml.NVML_DEVICE_MIG_ENABLE,
    places=(
        _SLICE,
        None,
        replace(_SLICE, uuid="MIG-1d89abd8-d10a-5361-bd06-77a807048472"),
        *(None,) * 4,
    ),
)


class NvmlLibrary:
    """Has the functions of the library as attributes, like a `ctypes.CDLL`.

    Its behaviour is set by its attributes, which may be changed while it is used.
    """

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.errors: dict[str, int] = {}
        """Functions that fail, whatever they are asked."""
        self.missing: set[str] = set()
        """Functions that this version of the library has not."""
        self.on_call: Callable[[str], None] = lambda name: None
        """Called with the name of each function that is called."""
        self.calls: list[str] = []
        self.open = 0
        """How often it was initialised and not yet shut down."""
        self._handles: list[Device] = []
        self._functions: dict[str, object] = {}

    def install(self, monkeypatch: object) -> None:
        """Have pynvml load this library, as if it had not loaded one yet."""
        put = monkeypatch.setattr  # type: ignore[attr-defined]
        put(pynvml, "CDLL", self._load)
        put(pynvml, "nvmlLib", None)
        put(pynvml, "_nvmlGetFunctionPointer_cache", {})
        put(pynvml, "_nvmlLib_refcount", 0)

    def _load(self, name: str) -> NvmlLibrary:
        assert name == "libnvidia-ml.so.1"
        if "dlopen" in self.missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self

    def __getattr__(self, name: str) -> object:
        if name not in _SIGNATURES or name in self.missing:
            raise AttributeError(name)
        if name not in self._functions:
            self._functions[name] = _SIGNATURES[name](
                lambda *arguments: self._call(name, *arguments)
            )
        return self._functions[name]

    def _call(self, name: str, *arguments: int) -> int:
        self.calls.append(name)
        self.on_call(name)
        if name in self.errors:
            return self.errors[name]
        plain = name.removesuffix("_v2")
        if plain == "nvmlInitWithFlags":
            self.open += 1
            return 0
        if self.open == 0:
            return int(pynvml.NVML_ERROR_UNINITIALIZED)
        if plain == "nvmlShutdown":
            self.open -= 1
            return 0
        if plain == "nvmlDeviceGetCount":
            return _number(arguments[0], len(self.devices))
        if plain == "nvmlDeviceGetHandleByIndex":
            index, place = arguments
            return self._handle(plain, place, self.devices[index], self.devices[index])
        device = self._handles[arguments[0] - 1]
        if plain == "nvmlDeviceGetMigDeviceHandleByIndex":
            _, index, place = arguments
            return self._handle(plain, place, device, device.places[index])
        if plain in device.errors:
            return device.errors[plain]
        return _answer(plain, device, arguments[1:])

    def _handle(self, name: str, place: int, asked: Device, device: Device | None) -> int:
        if name in asked.errors:
            return asked.errors[name]
        if device is None:
            return int(NOT_FOUND)
        self._handles.append(device)  # a handle is a number to everybody but the library
        cast(place, POINTER(c_void_p))[0] = len(self._handles)
        return 0


def _answer(name: str, device: Device, places: tuple[int, ...]) -> int:
    numbers = {
        "nvmlDeviceGetPowerUsage": device.power,
        "nvmlDeviceGetEnforcedPowerLimit": device.power_limit,
        "nvmlDeviceGetMaxMigDeviceCount": len(device.places),
    }
    if name in numbers:
        return _number(places[0], numbers[name])
    if name == "nvmlDeviceGetTemperature":
        sensor, place = places
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return _number(place, device.temperature)
    if name in ("nvmlDeviceGetName", "nvmlDeviceGetUUID"):
        place, size = places
        text = device.name if name == "nvmlDeviceGetName" else device.uuid
        content = text.encode("utf-8", "surrogateescape") + b"\0"
        assert len(content) <= size
        memmove(place, content, len(content))
        return 0
    if name == "nvmlDeviceGetMemoryInfo":
        memory = cast(places[0], POINTER(pynvml.c_nvmlMemory_t)).contents
        memory.used, memory.total = device.memory
        memory.free = memory.total - memory.used
        return 0
    if name == "nvmlDeviceGetUtilizationRates":
        if device.load is None:
            return int(NOT_SUPPORTED)
        rates = cast(places[0], POINTER(pynvml.c_nvmlUtilization_t)).contents
        rates.gpu, rates.memory = device.load, 12
        return 0
    if name == "nvmlDeviceGetMigMode":
        for place in places:
            code = _number(place, device.mig_mode)
        return code
    raise AssertionError(name)


def _number(place: int, value: int | None) -> int:
    if value is None:
        return int(NOT_SUPPORTED)
    cast(place, POINTER(c_uint))[0] = value
    return 0


_P = c_void_p
_SIGNATURES: dict[str, Any] = {
    name: CFUNCTYPE(c_int, *arguments)
    for name, arguments in {
        "nvmlInitWithFlags": (c_uint,),
        "nvmlShutdown": (),
        "nvmlDeviceGetCount_v2": (_P,),
        "nvmlDeviceGetHandleByIndex_v2": (c_uint, _P),
        "nvmlDeviceGetName": (_P, _P, c_uint),
        "nvmlDeviceGetUUID": (_P, _P, c_uint),
        "nvmlDeviceGetMemoryInfo": (_P, _P),
        "nvmlDeviceGetUtilizationRates": (_P, _P),
        "nvmlDeviceGetTemperature": (_P, c_uint, _P),
        "nvmlDeviceGetPowerUsage": (_P, _P),
        "nvmlDeviceGetEnforcedPowerLimit": (_P, _P),
        "nvmlDeviceGetMigMode": (_P, _P, _P),
        "nvmlDeviceGetMaxMigDeviceCount": (_P, _P),
        "nvmlDeviceGetMigDeviceHandleByIndex": (_P, c_uint, _P),
    }.items()
}
