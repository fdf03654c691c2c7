"""Format the node's resource usage for `qwenctl status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenctl.lib.text import one_line

STALE = 15.0
"""Age in seconds from which the GPUs' figures are marked as old."""


def figure_lines(resources: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for the machine, for each GPU and MIG device, and for missing figures."""
    if machine := _machine(resources):
        yield machine
    for gpu in resources.get("gpus") or ():
        yield _gpu(gpu)
    note, age = resources.get("gpu_note"), resources.get("gpus_age")
    if resources.get("gpus") and age is not None and age >= STALE:
        note = f"{note or 'the driver is slow'}; these GPU figures are {age:.0f} s old"
    if note:
        yield one_line(note)


def _machine(resources: Mapping[str, Any]) -> str:
    parts = []
    if resources.get("cpu_percent") is not None:
        parts.append(f"CPU {resources['cpu_percent']:.0f} %")
    used, total = resources.get("memory_used"), resources.get("memory_total")
    if used is not None and total:
        parts.append(f"memory {used / 2**30:.1f} of {total / 2**30:.1f} GiB")
    if resources.get("disk_free") is not None:
        disk = f"disk {resources['disk_free'] / 2**30:.0f} GiB free"
        if resources.get("disk_used_percent") is not None:
            disk += f" ({resources['disk_used_percent']:.0f} % used)"
        parts.append(disk)
    return ", ".join(parts)


def _gpu(gpu: Mapping[str, Any]) -> str:
    parts = [one_line(f"GPU {gpu['index']} {gpu['name'].removeprefix('NVIDIA ')}")]
    if gpu["error"]:
        parts.append(one_line(gpu["error"]))
    if gpu["utilisation_percent"] is not None:
        parts.append(f"{gpu['utilisation_percent']:.0f} %")
    used, total = gpu["memory_used"], gpu["memory_total"]
    if used is not None and total:
        parts.append(f"{_gib(used)}/{_gib(total)} GiB")
    if gpu["temperature"] is not None:
        parts.append(f"{gpu['temperature']:.0f} °C")
    if gpu["power"] is not None:
        limit = "" if gpu["power_limit"] is None else f"/{gpu['power_limit']:.0f}"
        parts.append(f"{gpu['power']:.0f}{limit} W")
    return "  ".join(parts)


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.1f}" if gib < 10 else f"{gib:.0f}"
