"""Every setting of qwenctl, typed, in one file: ``qwenctl.toml``, overlaid by ``QWENCTL_*``.

An environment variable names the same key in capitals, tables joined by two underscores:
``QWENCTL_PROXY__LISTEN=127.0.0.1:9000``, ``QWENCTL_GPU__MAIN__IDLE_TIMEOUT=20m``.

Looked for, in this order: ``--config``, ``$QWENCTL_CONFIG``, ``./qwenctl.toml``,
``$XDG_CONFIG_HOME/qwenctl/qwenctl.toml``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from qwenctl.errors import ConfigError
from qwenctl.rules import Rule, RuleTable
from qwenctl.wire import Activity, Readiness, Service, Spec
from qwenctl.workloads import CACHE, PRESET_OF, services_of, with_changes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "AccessConfig",
    "AliyunConfig",
    "AliyunTemplate",
    "ApiKey",
    "AwsConfig",
    "AwsTemplate",
    "Config",
    "ContainerConfig",
    "Duration",
    "FallbackConfig",
    "GpuConfig",
    "LocalConfig",
    "OffHoursConfig",
    "PrewarmConfig",
    "ProxyConfig",
    "ServiceConfig",
    "Size",
    "TimingConfig",
    "UnknownTier",
    "config_path",
    "is_loopback",
    "load_config",
    "parse_duration",
    "state_dir",
]

ENV_PREFIX = "QWENCTL_"

MAX_DURATION = 10_000 * 86400.0
"""Seconds; longer ones are mistakes."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> float:
    """Seconds from ``90``, ``"90s"``, ``"1h30m"``, ``"250ms"`` or ``"2d"``.

    Raises:
        ValueError: anything else, negative numbers included.
    """
    if isinstance(value, bool):
        raise ValueError(_DURATION_HELP)
    if isinstance(value, (int, float)):
        seconds = float(value)
    else:
        text = str(value).strip().replace(" ", "").lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif text and not _DURATION.sub("", text):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(text))
        else:
            raise ValueError(_DURATION_HELP)
    if seconds >= MAX_DURATION:
        raise ValueError(f"it is too long; less than {MAX_DURATION / 86400:.0f}d is allowed")
    if not seconds >= 0:
        raise ValueError(_DURATION_HELP)
    return seconds


_DURATION_HELP = 'a duration is a number of seconds or text such as "90s", "10m" or "1h30m"'

Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type="float | str"),
]
"""Seconds; written as a number or as ``"10m"``."""


_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"
_NAME_OR_EMPTY = r"^([a-z0-9][a-z0-9-]{0,31})?$"


def _web_url(value: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("this is no URL; it begins with http:// or https:// and names a host")
    return value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ApiKey(_Table):
    """One API client."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Who uses the key; shown in `status` and `why`."""
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """``sha256:`` and the hex digest of the key, as `qwenctl access new-key` prints it."""


class AccessConfig(_Table):
    """Who may use and wake the GPU."""

    mode: Literal["none", "password"] = "none"
    """``none``: everybody who reaches the proxy (which then listens on loopback only);
    ``password``: one shared password for browsers, API keys for clients."""
    password_hash: str = Field("", pattern=r"^(\$argon2id\$.+)?$")
    """The argon2id hash that `qwenctl access hash-password` prints."""
    keys: tuple[ApiKey, ...] = ()
    """API keys, sent as ``Authorization: Bearer qk_…`` or ``X-API-Key``."""
    session: Duration = 14 * 86400.0
    """How long a browser stays signed in."""


class ProxyConfig(_Table):
    """The always-on proxy."""

    listen: str = "127.0.0.1:8080"
    """Address and port to listen on."""
    public_url: str = ""
    """Where people and nodes reach the proxy; default: http:// and the listen address."""
    node_urls: tuple[str, ...] = ()
    """Where nodes reach the proxies, one URL a replica, so that a node finds another one when one
    dies; none: `public_url`."""
    allow_anonymous: bool = False
    """Listen on other than loopback addresses although access control is off."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-* headers are believed."""
    gate_headers: Literal["x-original", "x-forwarded"] = "x-original"
    """In which headers another data plane tells `/_qwenctl/gate` of the request: X-Original-Method
    and -URI (nginx, see docs/gateways.md) or X-Forwarded-Method and -Uri (Caddy, Traefik)."""
    hold: Duration = 600.0
    """How long a request of an API client is held while the GPU wakes."""
    max_held: int = Field(2000, ge=0)
    """How many requests may be held at once; further ones get 503 with Retry-After."""

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str) -> str:
        return value and _web_url(value)

    @field_validator("node_urls")
    @classmethod
    def _node_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            try:
                _web_url(url)
            except ValueError as error:
                raise ValueError(f"{url!r}: {error}") from None
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        import ipaddress

        for text in value:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(
                    f"{text!r} is neither an address nor a network such as 10.0.0.0/8"
                ) from None
        return value


class LocalConfig(_Table):
    """The local provider: an "instance" that is a process group on this machine."""

    boot_seconds: Duration = 3.0
    """How long the instance takes from start to running."""
    stop_seconds: Duration = 1.0
    """How long it takes from stop to stopped."""
    fail: Literal["", "no_capacity", "boot_hangs", "dies_after", "denied"] = ""
    """A fault to play: no capacity at start, a boot that never ends, an instance that dies."""
    dies_after: Duration = 10.0
    """With ``fail = "dies_after"``: how long after running the instance dies."""


class AliyunTemplate(_Table):
    """What `qwenctl provision create` makes on Alibaba Cloud: one pay-as-you-go or spot instance in
    a VPC, with the metadata service in hardened mode."""

    image_id: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """Image, such as ``ubuntu_22_04_x64_20G_alibase_20250722.vhd``; for containers one with
    Docker and nvidia-container-toolkit."""
    instance_type: str = Field("", pattern=r"^(ecs\.[a-z0-9.-]+)?$")
    """Instance type, such as ``ecs.gn7i-c8g1.2xlarge``; a family without local disks."""
    zone_id: str = Field("", pattern=r"^[a-z0-9-]*$")
    """Zone, such as ``cn-hangzhou-i``; default: that of the VSwitch."""
    vswitch_id: str = Field("", pattern=r"^(vsw-[a-z0-9]+)?$")
    """The VSwitch that it is attached to, best one in the proxy's VPC."""
    security_group_id: str = Field("", pattern=r"^(sg-[a-z0-9]+)?$")
    """Its security group, in the same VPC."""
    system_disk_category: str = Field("cloud_essd", pattern=r"^[a-z0-9_]+$")
    """Kind of the system disk; it must be a cloud disk."""
    system_disk_gb: int = Field(0, ge=0, le=2048)
    """Size of the system disk in GiB; 0: that of the image. It is billed while stopped, too."""
    key_pair_name: str = ""
    """SSH key pair; empty: nobody can sign in by SSH."""
    ram_role_name: str = ""
    """RAM role of the instance, so that the node can stop itself: `qwenctl policy aliyun --node`."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """``spot`` is cheaper and may be taken back; it is then stopped, not released."""
    spot_price_limit: float = Field(0.0, ge=0)
    """With ``spot``: the most to pay for an hour; 0: up to the pay-as-you-go price."""
    public_bandwidth_mbps: int = Field(0, ge=0, le=100)
    """Outgoing bandwidth of a public address, billed by traffic; 0: no public address."""
    generation: int = Field(1, ge=1)
    """Told to the cloud so that a repeated create makes no second instance; `qwenctl provision
    release` raises it."""


class AliyunConfig(_Table):
    """An instance of Alibaba Cloud ECS. Credentials are not here: the SDK finds them in its
    environment variables, its profile file, or the RAM role of the machine that the proxy runs on."""

    region: str = Field("", pattern=r"^([a-z]{2,3}(-[a-z0-9]+)+)?$")
    """Region id, such as ``cn-hangzhou``."""
    instance_id: str = Field("", pattern=r"^(i-[a-z0-9]+)?$")
    """The instance to start and stop. `qwenctl import aliyun` writes this table for you."""
    address: Literal["auto", "private", "public", "eip"] = "auto"
    """Which of its addresses the proxy uses; ``auto``: the private one if it has one."""
    keep_charging: bool = False
    """Allow stopping in a way that goes on costing (families with local disks, subscriptions)."""
    endpoint: str = ""
    """``host`` or ``host:port`` of the ECS API, for VPC endpoints; default: the region's."""
    ram_endpoint: str = ""
    """The same for the RAM API, which only `qwenctl provision --apply` asks; default:
    ``ram.aliyuncs.com``."""
    protocol: Literal["https", "http"] = "https"
    """``http`` only for endpoints on this machine."""
    connect_timeout: Duration = Field(5.0, gt=0)
    """Longest wait for a connection to the API."""
    read_timeout: Duration = Field(10.0, gt=0)
    """Longest wait for an answer of the API."""
    template: AliyunTemplate = Field({}, validate_default=True)
    """What `qwenctl provision create` makes."""

    @field_validator("endpoint", "ram_endpoint")
    @classmethod
    def _host(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9.-]+(:[0-9]{1,5})?)?", value):
            raise ValueError(
                "an endpoint is host or host:port, such as ecs-vpc.cn-hangzhou.aliyuncs.com, "
                "without https:// before it"
            )
        return value


class AwsTemplate(_Table):
    """What `qwenctl provision create` makes on EC2: one on-demand or spot instance that an OS
    shutdown stops, with IMDSv2 only."""

    image_id: str = Field("", pattern=r"^(ami-[0-9a-f]{8,17})?$")
    """AMI; for containers one with Docker and nvidia-container-toolkit."""
    instance_type: str = Field("", pattern=r"^[a-z0-9.-]*$")
    """Instance type, such as ``g5.xlarge``."""
    subnet_id: str = Field("", pattern=r"^(subnet-[0-9a-f]{8,17})?$")
    """The subnet that it is attached to, best one in the proxy's VPC; it decides the zone."""
    security_group_ids: tuple[Annotated[str, Field(pattern=r"^sg-[0-9a-f]{8,17}$")], ...] = ()
    """Its security groups, in the same VPC."""
    key_name: str = ""
    """SSH key pair; empty: nobody can sign in by SSH."""
    instance_profile: str = ""
    """Name of its instance profile; the node itself needs none."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """``spot`` is cheaper and may be taken back; it is a persistent request that stops it then."""
    max_price: float = Field(0.0, ge=0)
    """With ``spot``: the most to pay for an hour, in USD; 0: up to the on-demand price."""
    root_volume_gb: int = Field(0, ge=0, le=16384)
    """Size of the root volume (gp3) in GiB; 0: the image's own. It is billed while stopped, too."""
    public_ip: bool = False
    """Give it a public address, which changes with each start."""
    generation: int = Field(1, ge=1)
    """Told to the cloud so that a repeated create makes no second instance; `qwenctl provision
    release` raises it."""


class AwsConfig(_Table):
    """An instance of AWS EC2. Credentials are not here: boto3 finds them in its environment
    variables, its profile file, or the instance profile of the machine that the proxy runs on."""

    region: str = Field("", pattern=r"^([a-z]{2,3}(-[a-z]+)+-[0-9]+)?$")
    """Region, such as ``us-east-1``."""
    instance_id: str = Field("", pattern=r"^(i-[0-9a-f]{8,17})?$")
    """The instance to start and stop. `qwenctl import aws` writes this table for you."""
    address: Literal["auto", "private", "public"] = "auto"
    """Which of its addresses the proxy uses; ``auto``: the private one if it has one."""
    profile: str = ""
    """A profile of the AWS configuration files; default: boto3's own choice."""
    endpoint_url: str = Field("", pattern=r"^(https?://.+)?$")
    """URL of the EC2 API, for VPC endpoints; default: the region's."""
    connect_timeout: Duration = Field(5.0, gt=0)
    """Longest wait for a connection to the API."""
    read_timeout: Duration = Field(10.0, gt=0)
    """Longest wait for an answer of the API."""
    template: AwsTemplate = Field({}, validate_default=True)
    """What `qwenctl provision create` makes."""


class FallbackConfig(_Table):
    """Another instance for the same GPU, used when those before it have no capacity."""

    name: str = Field(pattern=_NAME)
    """What people call it: in `status`, `why` and on the waiting page."""
    provider: Literal["", "aliyun", "aws"] = ""
    """Its cloud; default: the GPU's. Other settings are those of the GPU's table of that cloud."""
    instance_id: str = Field(pattern=r"^i-[a-z0-9]+$")
    """The instance to start and stop."""
    region: str = ""
    """Its region; default: that of the GPU's own instance."""
    address: Literal["", "auto", "private", "public", "eip"] = ""
    """Which of its addresses the proxy uses; default: as for the GPU's own instance."""


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?")


def _size(value: object) -> int:
    """Bytes from ``1048576``, ``"512m"``, ``"8g"`` or ``"8GiB"``; powers of 1024, as Docker has it."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(str(value).strip().lower())
    if isinstance(value, bool) or not found:
        raise ValueError('a size is a number of bytes or text such as "512m" or "8g"')
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))


Size = Annotated[int, BeforeValidator(_size, json_schema_input_type="int | str")]
"""Bytes; written as a number or as ``"8g"``."""


def _gpus(value: object) -> object:
    """``"all"``, ``"none"``, or which ones; indices may be numbers."""
    if value == "none":
        return ()
    if value == "all" or (isinstance(value, (list, tuple)) and list(value) == ["all"]):
        return ("all",)
    if isinstance(value, (list, tuple)):
        found = [str(item) for item in value]  # True is none of these
        if all(re.fullmatch(r"[0-9]+(:[0-9]+)?|(GPU|MIG)-.+", item) for item in found):
            return found
    raise ValueError('it is "all", "none", or a list such as [0, 1] or ["MIG-…"]')


class ContainerConfig(_Table):
    """How Docker runs a service on the node. See docs/node.md."""

    image: str = Field(pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]*$")
    """The image, such as ``qwenllm/qwenvl:qwen3vl-cu128``."""
    entrypoint: tuple[str, ...] = ()
    """Instead of the image's own."""
    pull: Literal["missing", "always", "never"] = "missing"
    """When to ask the registry: if the node has not got the image, at every start, never."""
    port: int = Field(0, ge=0, le=65535)
    """The port inside the container; 0: the service's ``port``."""
    bind: str = "0.0.0.0"
    """The node's address that the port is published on; 127.0.0.1 for a service that only other
    services use."""
    network: Literal["bridge", "host"] = "bridge"
    """``bridge``: a network of the node's services, which find each other by name; ``host``."""
    gpus: Annotated[
        tuple[str, ...], BeforeValidator(_gpus, json_schema_input_type="str | list")
    ] = ("all",)
    """``"all"``, ``"none"``, or a list of indices, UUIDs or MIG devices."""
    shm_size: Size = Field(0, ge=0)
    """Shared memory, such as ``"8g"``; 0: Docker's own choice (64 MiB, too little for vLLM)."""
    memory: Size = Field(0, ge=0)
    """The most memory it may use; 0: no limit."""
    cpus: float = Field(0.0, ge=0)
    """The most CPUs it may use; 0: no limit."""
    volumes: tuple[Annotated[str, Field(pattern=r"^[^:]+:/[^:]*(:(ro|rw))?$")], ...] = ()
    """``/host/path:/path`` or ``name:/path``, with ``:ro`` for read-only."""
    restart: Literal["no", "unless-stopped"] = "no"
    """``unless-stopped``: Docker itself starts it at boot, before the agent does."""

    @field_validator("bind")
    @classmethod
    def _address(cls, value: str) -> str:
        import ipaddress

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


class ServiceConfig(_Table):
    """What the node runs: a command, or a container."""

    name: str = Field("webui", pattern=_NAME)
    """Name of the service in `status` and in logs."""
    command: tuple[str, ...] = ()
    """Program and arguments; no shell. For a container: instead of the image's own."""
    container: ContainerConfig | None = None
    """Run it with Docker."""
    env: dict[str, str] = Field(default_factory=dict)
    """Extra environment variables."""
    env_file: str = ""
    """A file on the node with more of them, one ``KEY=value`` a line: for tokens and passwords."""
    weights: str = ""
    """A directory on the node whose files it reads at start. The agent reads them ahead, and shows
    how far the service is."""
    cwd: str = ""
    """Working directory; default: the instance's own, or the image's."""
    port: int = Field(7860, ge=1, le=65535)
    """The port it listens on; the first service's port is where traffic goes."""
    readiness: Readiness = Field({}, validate_default=True)
    """The HTTP probe that says when it is ready."""
    activity: Activity = Field({}, validate_default=True)
    """How to ask it for running generations."""
    stop_timeout: Duration = 10.0
    """From SIGTERM to SIGKILL."""
    max_restarts: int = Field(5, ge=0)
    """Crashes in a row before it is given up."""

    def to_wire(self, *, here: bool = False) -> Service:
        """As the node is told. ``here``: on this machine, where no security group keeps others from
        a container's port; it is for the proxy alone."""
        values = self.model_dump()
        if here and self.container is not None and self.container.bind == "0.0.0.0":
            values["container"]["bind"] = "127.0.0.1"
        runtime = "process" if self.container is None else "docker"
        return Service(**{**values, "runtime": runtime})


class TimingConfig(_Table):
    """Bounds of the lifecycle; the defaults suit a cloud instance."""

    drain: Duration = Field(4.0, ge=3.0)
    """How long nobody must have wanted the GPU before it is stopped; at least 3 s, because a
    proxy's view may be 1 s old and its own news 1 s late."""
    start: Duration = 300.0
    """Start call accepted → running."""
    boot: Duration = 300.0
    """Running → the agent's hello."""
    load: Duration = 1200.0
    """Hello → ready."""
    call_grace: Duration = 15.0
    """How long the cloud may show the old state after it accepted a call."""
    heartbeat: Duration = 5.0
    """The agent's heartbeat interval."""
    node_lost: Duration = 180.0
    """No heartbeat for so long: the agent is gone."""
    retry: Duration = 10.0
    """Wait after the first failure; doubles with each further one."""
    retry_max: Duration = 300.0
    """The longest wait between two attempts."""
    dead_man: Duration = 600.0
    """No contact with any proxy for so long, and nothing running: the node stops itself."""


def _lead(value: object) -> float | str:
    return "auto" if value == "auto" else parse_duration(value)


Lead = Annotated[
    float | Literal["auto"],
    BeforeValidator(_lead, json_schema_input_type="float | str"),
]
"""Seconds, or as long as a start usually takes."""


class OffHoursConfig(_Table):
    """Hours in which the GPU is kept off. Running work is finished first. See docs/schedules.md."""

    name: str = Field(pattern=_NAME)
    """Name of the schedule in `status`, `why` and `qwenctl prewarm`."""
    cron: str
    """When it begins: minute, hour, day of month, month, day of week, as in a crontab."""
    timezone: str = ""
    """IANA name such as ``Asia/Shanghai``; default: that of the machine that reads this."""
    duration: Duration = Field(gt=0)
    """How long each time."""
    exceptions: tuple[str, ...] = ()
    """Days on which it does not begin: dates such as ``2026-12-25``, and .ics files, whose all-day
    events are meant; a relative path starts at this file."""

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        from qwenctl.schedule import Cron

        return Cron(value).text

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        import zoneinfo

        try:
            if value:
                zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            from qwenctl.time_zones import alike

            meant = " or ".join(alike(value))
            raise ValueError(
                "no such time zone on this machine; "
                + (f"perhaps {meant}; " if meant else "names are like Europe/Berlin, and ")
                + "`pip install tzdata` brings all of them"
            ) from None
        return value

    @field_validator("exceptions", mode="before")
    @classmethod
    def _exceptions(cls, value: Any) -> Any:
        import datetime

        if not isinstance(value, (list, tuple)):
            return value
        for item in value:
            if isinstance(item, datetime.date) and not isinstance(item, datetime.datetime):
                continue  # TOML has dates of its own
            try:
                datetime.date.fromisoformat(item)
            except (TypeError, ValueError):
                if not isinstance(item, str) or not item.lower().endswith(".ics"):
                    raise ValueError(
                        f"{str(item)!r} is neither a date such as 2026-12-25 nor an .ics file"
                    ) from None
        return [str(item) for item in value]


class PrewarmConfig(OffHoursConfig):
    """Hours in which the GPU is kept ready, whether or not somebody uses it. See docs/schedules.md."""

    cron: str
    """When it is to be ready: minute, hour, day of month, month, day of week, as in a crontab."""
    duration: Duration = Field(gt=0)
    """How long it is kept ready each time."""
    exceptions: tuple[str, ...] = ()
    """Days on which it is not: dates such as ``2026-12-25``, and .ics files, whose all-day events
    are meant; a relative path starts at this file."""
    lead: Lead = "auto"
    """How long before that it is started; ``auto``: as long as its last starts took."""


class GpuConfig(_Table):
    """One GPU instance."""

    provider: str = "local"
    """``local``, ``aliyun``, ``aws``, or the name of an installed provider."""
    hosts: tuple[str, ...] = ()
    """Host names whose requests go to this GPU; none: every host that no other GPU names."""
    tier: str = Field("", pattern=_NAME_OR_EMPTY)
    """What tells GPUs of the same hosts apart, such as ``speed`` and ``quality``; visitors choose,
    and the first GPU of the file is for those who do not. See docs/tiers.md."""
    models: tuple[str, ...] = ()
    """API models that this one of the GPUs of the same hosts serves: names, or patterns such as
    ``Qwen/Qwen3-VL-8B-*``."""
    idle_timeout: Duration = Field(600.0, ge=1.0)
    """How long after the last activity the GPU stays on."""
    boot_estimate: Duration = 90.0
    """What to tell the first visitor, before there are boots to learn from."""
    preset: Literal["gradio", "open-webui", "openai", "generic"] = "gradio"
    """The rule table to start from: what counts as use of this kind of WebUI."""
    rules: tuple[Rule, ...] = ()
    """Rules of your own, tried before the preset's."""
    wake_on: Literal["visit", "click", "never"] = "visit"
    """``visit``: the waiting page wakes the GPU when it is visible in a browser; ``click``: only
    its button; ``never``: only the command line, API keys and schedules."""
    api: Literal["hold", "fail"] = "hold"
    """What an API client gets while the GPU wakes: its request held, or 503 with Retry-After."""
    found_running: Literal["adopt", "stop", "ignore"] = "adopt"
    """An instance found running that nobody needs: keep it one idle timeout, stop it, or leave it."""
    address: str = ""
    """Where the proxy reaches the node, if not where the cloud says."""
    agent: bool = True
    """``false``: no agent runs on the instance, its WebUI starts by itself, and the proxy asks it
    whether it is ready. See docs/agentless.md for what is lost."""
    price_per_hour: float = Field(0.0, ge=0)
    """For `status` and savings; in your currency."""
    timing: TimingConfig = Field({}, validate_default=True)
    local: LocalConfig = Field({}, validate_default=True)
    aliyun: AliyunConfig = Field({}, validate_default=True)
    aws: AwsConfig = Field({}, validate_default=True)
    fallback: tuple[FallbackConfig, ...] = ()
    """Other instances, in order of preference, for when the own one has no capacity."""
    workload: Literal["custom", "qwen3-vl-webui", "vllm-openai", "open-webui+vllm"] = "custom"
    """What the node runs, ready-made and in containers: Qwen's own WebUI, vLLM's OpenAI API, or Open
    WebUI before vLLM. ``custom``: what `service` says. A `service` table of the same name (``webui``,
    ``vllm``) changes single keys of a ready-made one. See docs/node.md."""
    model: str = Field("", pattern=r"^([A-Za-z0-9/][A-Za-z0-9._/-]*)?$")
    """With `workload`: the model, by its name on Hugging Face (``Qwen/Qwen3-VL-8B-Instruct``), or a
    directory on the node."""
    model_cache: str = Field(CACHE, pattern=r"^/[^:]*$")
    """With `workload`: the directory on the node that models are kept in."""
    service: tuple[ServiceConfig, ...] = ()
    """What the node runs, in order; traffic goes to the first. Without an agent: where it listens,
    and how it is asked whether it is ready."""
    prewarm: tuple[PrewarmConfig, ...] = ()
    """When it is kept ready by schedule."""
    off_hours: tuple[OffHoursConfig, ...] = ()
    """When it is kept off by schedule."""

    @cached_property
    def rule_table(self) -> RuleTable:
        """The rules in force, first match first."""
        from qwenctl.presets import PRESETS

        return RuleTable(self.rules + PRESETS[self.preset])

    @cached_property
    def spec(self) -> Spec:
        """What the node should run; its version changes when anything in it does."""
        spec = Spec(
            version="",
            services=tuple(
                service.to_wire(here=self.provider == "local") for service in self.service
            ),
            heartbeat=self.timing.heartbeat,
            dead_man=self.timing.dead_man,
        )
        digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
        return spec.model_copy(update={"version": digest})

    @property
    def port(self) -> int:
        """The port on the node that traffic goes to."""
        return self.service[0].port if self.service else 7860

    @field_validator("service")
    @classmethod
    def _distinct(cls, value: tuple[ServiceConfig, ...]) -> tuple[ServiceConfig, ...]:
        for what in ("name", "port"):
            seen = [getattr(service, what) for service in value]
            if len(set(seen)) != len(seen):
                raise ValueError(f"two services have the same {what}")
        return value

    @property
    def machine(self) -> str:
        """The GPU's own instance in words, to tell it from another that a GPU of this name was."""
        own, _ = self.candidates()[0]
        return self.provider if own in ("", self.provider) else f"{self.provider} {own}"

    def candidates(self) -> list[tuple[str, GpuConfig]]:
        """The GPU's own instance and its fallbacks, in order, by name: each a GPU with one."""
        own = self.model_copy(update={"fallback": ()})
        if self.provider not in ("aliyun", "aws"):
            return [(self.provider, own)]
        first: AliyunConfig | AwsConfig = getattr(self, self.provider)
        found = [(first.instance_id, own)]
        for other in self.fallback:
            cloud = other.provider or self.provider
            table: AliyunConfig | AwsConfig = getattr(self, cloud)
            given = other.model_dump(include={"instance_id", "region", "address"})
            merged = type(table)(**{**table.model_dump(), **{k: v for k, v in given.items() if v}})
            found.append((other.name, own.model_copy(update={"provider": cloud, cloud: merged})))
        return found

    @model_validator(mode="after")
    def _usable(self) -> GpuConfig:
        """An instance that is billed, and that nobody could ever use, is refused here."""
        if self.model and self.workload == "custom":
            raise ValueError('model is for a workload, such as workload = "qwen3-vl-webui"')
        if self.workload != "custom" and not self.agent:
            raise ValueError("agent = false runs no workload: remove one of the two")
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("unusable", "{what}", {"what": what}),
                loc=("service", number),
                input=service,
            )
            for number, service in enumerate(self.service if self.agent else ())
            for what in self._hindrances(number, service)
        ]
        if errors:
            raise ValidationError.from_exception_data("GpuConfig", errors)
        return self

    def _hindrances(self, number: int, service: ServiceConfig) -> Iterator[str]:
        container = service.container
        if container is None:
            if not service.command:
                yield "it needs a command, or a container with an image (or agent = false)"
        elif container.network == "host":
            if self.workload == "open-webui+vllm" and service.name == "webui":
                yield "with network = 'host' it does not find http://vllm:8000: use 'bridge'"
            if container.port not in (0, service.port):
                yield (
                    "with network = 'host' container.port must be the service's port "
                    f"({service.port}), or left out"
                )
            if container.bind != "0.0.0.0":
                yield (
                    "with network = 'host' bind has no effect, and other services do not find this "
                    "one by its name: leave bind out, or use network = 'bridge'"
                )
        elif (
            number == 0
            and is_loopback(container.bind)
            and self.provider in ("aliyun", "aws")
            and not is_loopback(self.address)
        ):
            yield f"the proxy cannot reach bind = {container.bind!r}, and traffic goes to this one"

    @model_validator(mode="after")
    def _fallbacks(self) -> GpuConfig:
        if not self.fallback:
            return self
        if self.provider not in ("aliyun", "aws"):
            raise ValueError(f"fallback is for the providers aliyun and aws, not {self.provider!r}")
        if self.address:
            raise ValueError("address is that of one instance; it cannot be set with fallback")
        ids = [getattr(self, self.provider).instance_id]
        for other in self.fallback:
            if other.instance_id in ids:
                raise ValueError(f"the instance {other.instance_id} is named twice")
            ids.append(other.instance_id)
        try:
            self.candidates()
        except ValidationError as error:
            where, what = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
            raise ValueError(f"fallback: {where}: {what}") from None
        return self

    @model_validator(mode="after")
    def _one_schedule_a_name(self) -> GpuConfig:
        names = [schedule.name for schedule in (*self.prewarm, *self.off_hours)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two schedules (prewarm, off_hours) have the name {name!r}")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _ready_made(cls, data: Any, validate: ModelWrapValidatorHandler[GpuConfig]) -> GpuConfig:
        """The tables of the workload, as if they stood in the file.

        It comes last, so that it sees what the validators above refuse, too.
        """
        if not isinstance(data, dict) or str(data.get("workload")) not in PRESET_OF:
            return validate(data)
        given, model = data.get("service", ()), data.get("model", "")
        cache = data.get("model_cache", CACHE)
        if not model:
            raise ValueError(
                f"workload = {data['workload']!r} needs a model, such as "
                'model = "Qwen/Qwen3-VL-8B-Instruct"'
            )
        if not (
            isinstance(given, (list, tuple)) and isinstance(model, str) and isinstance(cache, str)
        ):
            return validate(data)  # which says what is wrong with them
        made = services_of(data["workload"], model, cache)
        preset = PRESET_OF[data["workload"]]
        services, places = with_changes(made, given)
        try:
            return validate({"preset": preset, **data, "service": services})
        except ValidationError as error:
            raise _moved(error, places) from None


def _moved(error: ValidationError, places: Sequence[int | str]) -> ValidationError:
    """The same with the places that services have in the file, where a workload has put its own
    before them."""
    details = []
    for problem in error.errors(include_url=False):
        match problem["loc"]:
            case ("service", int(number), *rest):
                where: tuple[int | str, ...] = ("service", places[number], *rest)
            case where:
                pass
        kind: Any = PydanticCustomError(problem["type"], problem["msg"], problem.get("ctx"))
        details.append(InitErrorDetails(type=kind, loc=where, input=problem["input"]))
    return ValidationError.from_exception_data(error.title, details)


class UnknownTier(LookupError):
    """Somebody asked for a tier that no GPU of the host has; says which there are."""


class Config(_Table):
    """The whole file."""

    deployment: str = Field("default", pattern=_NAME)
    """Keeps several deployments apart that share one Redis."""
    state_dir: str = ""
    """Where local state lives; default: $XDG_STATE_HOME/qwenctl."""
    redis_url: str = ""
    """redis://, rediss://, unix:// or redis+sentinel://; empty: an embedded server of our own."""
    redis_password_file: str = ""
    """A file with the Redis password, if it is not in the URL."""
    node_secret: SecretStr = SecretStr("")
    """The secret that nodes sign with; better in `node_secret_file` or QWENCTL_NODE_SECRET."""
    node_secret_file: str = ""
    """A file with the node secret; default: ``node.secret`` in the state directory, made at need."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the pages; ``auto``: what the browser asks for."""
    proxy: ProxyConfig = Field({}, validate_default=True)
    access: AccessConfig = Field({}, validate_default=True)
    gpu: dict[Annotated[str, Field(pattern=_NAME)], GpuConfig] = Field(default_factory=dict)
    """One table per GPU: ``[gpu.NAME]``."""

    _source: str = ""

    @field_validator("redis_url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        before, found, _ = value.partition("://")
        scheme = before.lower() if found else ""
        if value and scheme not in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
            # Without a scheme nothing is quoted: it may be a password.
            raise ValueError(
                f"unknown scheme {scheme!r}; use redis://, rediss://, unix://, redis+sentinel:// "
                "or redis+cluster://"
            )
        return value

    @property
    def source(self) -> str:
        """The file that this came from, or empty."""
        return self._source

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir).expanduser() if self.state_dir else state_dir()

    @property
    def url(self) -> str:
        """Where people and nodes reach the proxy, without a slash at the end."""
        return (self.proxy.public_url or f"http://{self.proxy.listen}").rstrip("/")

    @property
    def node_urls(self) -> tuple[str, ...]:
        """Where nodes reach the proxies, without slashes at the end."""
        return tuple(url.rstrip("/") for url in self.proxy.node_urls) or (self.url,)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        self._check_tiers()
        self._check_instances()
        self._check_local_ports()
        if self.access.mode == "password" and not self.access.password_hash:
            raise ValueError(
                'access.mode = "password" needs access.password_hash: run `qwenctl access hash-password`'
            )
        return self

    def _check_tiers(self) -> None:
        """GPUs of the same host need different tiers. (Without tiers, all but the first of those
        that name no host are for the command line and `?gpu=`.)"""
        claimed: dict[str, list[str]] = {}
        for name, gpu in self.gpu.items():
            for host in dict.fromkeys(host.lower() for host in gpu.hosts):
                claimed.setdefault(host, []).append(name)
        free = [name for name, gpu in self.gpu.items() if not gpu.hosts]
        if any(self.gpu[name].tier for name in free):
            claimed[""] = free
        for host, names in claimed.items():
            for one, other in combinations(names, 2):
                tiers = {self.gpu[one].tier, self.gpu[other].tier}
                if len(tiers) < 2 or "" in tiers:
                    what = f"claim host {host}" if host else "serve every other host"
                    raise ValueError(
                        f"gpu.{one} and gpu.{other} both {what}; give each a tier of its own, or "
                        "other hosts"
                    )

    def _check_instances(self) -> None:
        """No two GPUs may have the same instance: each would stop it under the other's work."""
        owners: dict[str, str] = {}
        for name, gpu in self.gpu.items():
            for _, table in gpu.candidates():
                clouds = {"aliyun": table.aliyun.instance_id, "aws": table.aws.instance_id}
                instance = clouds.get(table.provider)
                owner = owners.setdefault(instance, name) if instance else name
                if owner != name:
                    raise ValueError(
                        f"gpu.{owner} and gpu.{name} both have the instance {instance}; "
                        "each would stop it under the other's work"
                    )

    def _check_local_ports(self) -> None:
        """GPUs of the local provider are on one machine: each port is for one service."""
        owners: dict[int, str] = {}
        for name, gpu in self.gpu.items():
            for service in gpu.service if gpu.provider == "local" else ():
                owner = owners.setdefault(service.port, name)
                if owner != name:
                    raise ValueError(
                        f"gpu.{owner} and gpu.{name} both have a service on port {service.port} of "
                        "this machine; give each a port of its own"
                    )

    @property
    def unvisited(self) -> tuple[str, ...]:
        """The GPUs that no visitor is sent to, as they have neither hosts nor a tier and another
        one of this kind comes before them; the command line and `?gpu=` reach them."""
        free = tuple(name for name, gpu in self.gpu.items() if not gpu.hosts)
        return tuple(name for name in free if name not in self._gpus_of_other_hosts)

    def gpu_name(self, wanted: str | None) -> str:
        """The GPU meant by ``--gpu`` or its absence.

        Raises:
            ConfigError: no such GPU, or none given where there are several.
        """
        names = list(self.gpu)
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in self.gpu:
            return str(wanted)
        if not names:
            raise ConfigError("no GPU is configured: add a [gpu.NAME] table, or run `qwenctl init`")
        known = ", ".join(names)
        if wanted is None:
            raise ConfigError(f"say which GPU with --gpu; configured: {known}")
        raise ConfigError(f"no GPU named {wanted!r}; configured: {known}")

    @cached_property
    def _gpus_by_host(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, gpu in self.gpu.items():
            for host in dict.fromkeys(host.lower() for host in gpu.hosts):
                found[host] = (*found.get(host, ()), name)
        return found

    @cached_property
    def _gpus_of_other_hosts(self) -> tuple[str, ...]:
        free = tuple(name for name, gpu in self.gpu.items() if not gpu.hosts)
        if free:
            return free if self.gpu[free[0]].tier else free[:1]
        first = next(iter(self.gpu.values()), None)
        return self._gpus_by_host[first.hosts[0].lower()] if first else ()

    def gpus_at(self, host: str) -> tuple[str, ...]:
        """The GPUs that requests for this host name (lower case) can go to, the default one first:
        those that name it, else those that name none, else the first and those of its tiers; empty
        if there is no GPU at all."""
        return self._gpus_by_host.get(host, self._gpus_of_other_hosts)

    def choose_gpu(
        self, names: Sequence[str], *, tier: str = "", model: str = "", usual_tier: str = ""
    ) -> str:
        """One of several GPUs of a host (`gpus_at`): that of the ``tier`` asked for, else the one
        that serves the API ``model``, else that of the ``usual_tier``, else the first.

        Raises:
            UnknownTier: none of them has that ``tier``. (A model or usual tier that none of them
                has does not matter.)
        """
        if tier:
            for name in names:
                if self.gpu[name].tier == tier:
                    return name
            known = ", ".join(self.gpu[name].tier for name in names)
            raise UnknownTier(f"there is no tier {tier[:40]!r} here; known: {known}")
        if model:
            for name in names:
                if model in self.gpu[name].models:
                    return name
            for name in names:
                if any(fnmatchcase(model, pattern) for pattern in self.gpu[name].models):
                    return name
        return next((n for n in names if usual_tier and self.gpu[n].tier == usual_tier), names[0])

    def check_listen(self) -> tuple[str, int]:
        """Host and port of ``proxy.listen``, if the proxy may listen there.

        Raises:
            ConfigError: not an address, or open to others without access control.
        """
        host, _, port = self.proxy.listen.rpartition(":")
        host = host.strip("[]")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ConfigError(f"proxy.listen: {self.proxy.listen!r} is not address:port")
        if self.access.mode == "none" and not (self.proxy.allow_anonymous or is_loopback(host)):
            raise ConfigError(
                f"proxy.listen: {host} can be reached by others and access control is off; set "
                'access.mode = "password", or proxy.allow_anonymous = true if that is what you want'
            )
        return host, int(port)

    def read_node_secret(self) -> str:
        """The node secret; a new random one is written to the state directory at the first call.

        Raises:
            ConfigError: the file is missing, empty, or cannot be written.
        """
        if given := self.node_secret.get_secret_value():
            return given
        if self.node_secret_file:
            return read_secret(Path(self.node_secret_file).expanduser(), "node_secret_file")
        return own_secret(self.state_path / "node.secret")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine and nobody else's."""
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_secret(path: Path, key: str) -> str:
    """The content of a secret file, without the line end.

    Raises:
        ConfigError: unreadable or empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is not UTF-8 text") from None
    if not text:
        raise ConfigError(f"{key}: {path} is empty")
    return text


def own_secret(path: Path) -> str:
    """A random secret in a file that only the owner can read, made at the first call."""
    import secrets

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(fresh, path)  # two processes at once: the first one wins, both read it
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        if not path.exists():
            raise ConfigError(
                f"cannot write {path}: {error.strerror}; set state_dir or QWENCTL_STATE_DIR to a "
                "directory that you can write"
            ) from None
    return read_secret(path, "secret")


def state_dir() -> Path:
    """``$XDG_STATE_HOME/qwenctl``, by default ``~/.local/state/qwenctl``."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "qwenctl"


def config_path(given: str | None = None) -> Path | None:
    """The config file in force, or None if there is none.

    Raises:
        ConfigError: a file was named and does not exist.
    """
    named = given or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigError(f"no config file at {path}; `qwenctl init` writes one")
        return path
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    for path in (Path("qwenctl.toml"), Path(base).expanduser() / "qwenctl" / "qwenctl.toml"):
        if path.is_file():
            return path
    return None


def load_config(given: str | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read, overlay and check the configuration.

    Raises:
        ConfigError: one sentence a problem: the file, the key, what was found, what is allowed.
    """
    path = config_path(given)
    data: dict[str, Any] = {}
    where = "the environment"
    if path is not None:
        where = str(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    origins = _overlay(data, os.environ if env is None else env)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, where, origins))) from None
    config._source = str(path.resolve()) if path else ""
    return config


def _overlay(data: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Put ``QWENCTL_*`` variables into ``data``; which key came from which variable."""
    origins: dict[str, str] = {}
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable.startswith(f"{ENV_PREFIX}NODE__"):
            continue  # the agent's own (gpu_node)
        keys = [key.lower() for key in variable[len(ENV_PREFIX) :].split("__")]
        if keys[0] == "gpu" and len(keys) > 1:
            keys[1] = keys[1].replace("_", "-")
        table: Any = data
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise ConfigError(f"{variable}: {'.'.join(keys[:-1])} is not a table")
        table[keys[-1]] = _env_value(env[variable])
        origins[".".join(keys)] = variable
    return origins


_NOT_SETTINGS = {
    f"{ENV_PREFIX}{name}" for name in ("CONFIG", "DEBUG", "EMBEDDED_LINGER", "TEST_SNAPSHOT_DELAY")
}


def _env_value(text: str) -> Any:
    """Lists and tables are written as JSON; everything else stays text and is converted by type."""
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _explain(error: ValidationError, where: str, origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"] if part != "[key]"]
        key = ".".join(location)
        source = origins.get(key)
        if source is None and problem["type"] == "extra_forbidden":  # a table only in variables
            source = next((origins[k] for k in origins if k.startswith(f"{key}.")), None)
        head = f"{source} ({key})" if source else f"{where}: {key}" if key else where
        if problem["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            yield f"{head}: unknown key; {hint}"
            continue
        message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if problem.get("ctx", {}).get("pattern") in (_NAME, _NAME_OR_EMPTY):
            message = "a name is made of lower-case letters, digits and hyphens, at most 32"
        message = message[:1].lower() + message[1:]
        found = (
            "" if problem["type"] == "missing" or _secret(location) else _found(problem["input"])
        )
        yield f"{head}: {message}{found}"


_PLAIN = {
    "tuple_type": "input should be a list",
    "dict_type": "input should be a table",
    "model_type": "input should be a table",
    "model_attributes_type": "input should be a table",
}
"""Words of TOML where Pydantic's are Python's."""


def _secret(location: list[str]) -> bool:
    return bool(location) and any(
        word in location[-1] for word in ("secret", "password", "hash", "redis_url")
    )


def _found(value: object) -> str:
    if isinstance(value, (BaseModel, dict, list, tuple)):
        return ""
    text = repr(value)
    return f", found {text if len(text) <= 60 else text[:57] + '…'}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys allowed in the table at that place."""
    import typing

    def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in typing.get_args(annotation):
            yield from models_in(inner)

    model: type[BaseModel] = Config
    for part in location:
        field = model.model_fields.get(part)
        if field is not None:
            model = next(models_in(field.annotation), model)
    return list(model.model_fields)
