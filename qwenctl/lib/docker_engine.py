"""Read what a Docker daemon says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPU_ADVICE = (
    "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker "
    "&& systemctl restart docker"
)


def knows_gpus(info: Mapping[str, Any]) -> bool:
    """Return whether there is nvidia-container-toolkit's runtime, or a device file (CDI) of it."""
    devices = info.get("DiscoveredDevices") or ()
    return "nvidia" in (info.get("Runtimes") or {}) or any(
        str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in devices
    )
