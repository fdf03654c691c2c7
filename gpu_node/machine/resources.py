"""Read CPU, memory, disk and GPU figures of the node."""

from __future__ import annotations

import psutil

from gpu_node.machine.nvidia import GpuWatch
from qwenctl.protocol.messages import Resources


def read_resources(path: str, gpus: GpuWatch | None = None) -> Resources:
    """Return CPU since the last call (at first 0), memory, the disk where ``path`` is, and GPUs."""
    memory = psutil.virtual_memory()
    try:
        disk = psutil.disk_usage(path)
    except OSError:
        disk = None
    view = gpus.look() if gpus is not None else None
    return Resources(
        cpu_percent=psutil.cpu_percent(),
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        disk_free=disk.free if disk else None,
        disk_used_percent=disk.percent if disk else None,
        gpus=view.gpus if view else (),
        gpus_age=view.age if view else None,
        gpu_note=view.note if view else "",
    )
