"""Settings of what a node runs: ``[[gpu.NAME.service]]``."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from qwenctl.lib.settings_types import NAME, Duration, Size, Table
from qwenctl.protocol.messages import Container, Service, ServiceFields


def _gpus(value: object) -> object:
    """Parse ``"all"``, ``"none"`` or a list of GPUs, whose indices may be numbers."""
    if value == "none":
        return ()
    if value == "all" or (isinstance(value, (list, tuple)) and list(value) == ["all"]):
        return ("all",)
    if isinstance(value, (list, tuple)):
        found = [str(item) for item in value]
        if all(re.fullmatch(r"[0-9]+(:[0-9]+)?|(GPU|MIG)-.+", item) for item in found):
            return found
    raise ValueError('it is "all", "none", or a list such as [0, 1] or ["MIG-…"]')


class ContainerConfig(Container, extra="forbid"):
    """How Docker runs a service on the node. See docs/node.md."""

    image: str = Field(pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]*$")
    """The image, such as ``qwenllm/qwenvl:qwen3vl-cu128``."""
    gpus: Annotated[
        tuple[str, ...], BeforeValidator(_gpus, json_schema_input_type="str | list")
    ] = ("all",)
    """``"all"``, ``"none"``, or a list of indices, UUIDs or MIG devices."""
    shm_size: Size = Field(0, ge=0)
    """Shared memory, such as ``"8g"``; 0: Docker's own choice (64 MiB, too little for vLLM)."""
    memory: Size = Field(0, ge=0)
    """The most memory it may use; 0: no limit."""
    volumes: tuple[Annotated[str, Field(pattern=r"^[^:]+:/[^:]*(:(ro|rw))?$")], ...] = ()
    """``/host/path:/path`` or ``name:/path``, with ``:ro`` for read-only."""

    @field_validator("bind")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            raise ValueError("it is an address such as 0.0.0.0 or 127.0.0.1") from None

    @field_validator("volumes")
    @classmethod
    def _one_volume_a_target(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        seen: set[str] = set()
        for volume in value:
            target = posixpath.normpath(volume.split(":")[1])
            if target in seen:
                raise ValueError(f"two volumes have the target {target}")
            seen.add(target)
        return value


class _ServiceHead(Table):
    name: str = Field("webui", pattern=NAME)
    """Name of the service in `status` and in logs."""
    command: tuple[str, ...] = ()  # for its place in the reference
    container: ContainerConfig | None = None
    """Run it with Docker."""


class ServiceConfig(ServiceFields, _ServiceHead, extra="forbid"):
    """What the node runs: a command, or a container."""

    stop_timeout: Duration = 10.0
    """From SIGTERM to SIGKILL."""

    def to_protocol(self, *, here: bool = False) -> Service:
        """Make the service of the spec.

        Args:
            here: on this machine, where no security group protects the container's port: it is
                published on loopback only.
        """
        values = self.model_dump()
        if here and self.container is not None and self.container.bind == "0.0.0.0":
            values["container"]["bind"] = "127.0.0.1"
        runtime = "process" if self.container is None else "docker"
        return Service(**{**values, "runtime": runtime})
