"""How busy the node is, in figures."""

from __future__ import annotations

import psutil

from qwenctl.wire import Resources

__all__ = ["read_resources"]


def read_resources(path: str) -> Resources:
    """CPU since the last call (the first one says 0), memory, and free space where ``path`` is."""
    memory = psutil.virtual_memory()
    try:
        disk_free = psutil.disk_usage(path).free
    except OSError:
        disk_free = None
    return Resources(
        cpu_percent=psutil.cpu_percent(),
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        disk_free=disk_free,
    )
