"""Docker SDK options of a service's container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenctl.protocol.messages import Service


def container_options(service: Service, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of the service's container, as the Docker SDK names them.

    ``own``: the container's; ``host``: of its host configuration; ``devices``: its GPUs, as in
    Docker's API.
    """
    container = service.container
    assert container is not None
    inner = container.port or service.port
    own: dict[str, Any] = {
        "command": list(service.command) or None,
        "entrypoint": list(container.entrypoint) or None,
        "environment": {"PYTHONUNBUFFERED": "1", **environment},
        "working_dir": service.cwd or None,
        "volumes": [volume.split(":")[1] for volume in container.volumes] or None,
    }
    host: dict[str, Any] = {
        "binds": list(container.volumes) or None,
        "restart_policy": {"Name": container.restart},
    }
    if container.network == "host":
        host["network_mode"] = "host"
    else:
        own["ports"] = [(inner, "tcp")]
        host["port_bindings"] = {f"{inner}/tcp": (container.bind, service.port)}
    if container.shm_size:
        host["shm_size"] = container.shm_size
    if container.memory:
        # No swap on top: a model that swaps is too slow to use.
        host["mem_limit"] = host["memswap_limit"] = container.memory
    if container.cpus:
        host["nano_cpus"] = int(container.cpus * 1e9)
    every = "all" in container.gpus
    devices: dict[str, Any] = {
        "Driver": "",
        "Count": -1 if every else 0,
        "DeviceIDs": [] if every else list(container.gpus),
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    return {"own": own, "host": host, "devices": [devices] if container.gpus else []}
