"""Settings of Alibaba Cloud ECS: ``[gpu.NAME.aliyun]``."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from qwenctl.clouds.base import ProviderSettings
from qwenctl.core.words import OffBill
from qwenctl.lib.settings_types import Duration, Table


class AliyunTemplate(Table):
    """The instance that `qwenctl provision create` makes on Alibaba Cloud: pay-as-you-go or spot, in
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
    """RAM role of the instance, so that the node can stop itself: `qwenctl permissions aliyun --node`."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """``spot`` is cheaper and may be reclaimed; it is then stopped, not released."""
    spot_price_limit: float = Field(0.0, ge=0)
    """With ``spot``: the most to pay for an hour; 0: up to the pay-as-you-go price."""
    public_bandwidth_mbps: int = Field(0, ge=0, le=100)
    """Outgoing bandwidth of a public address, billed by traffic; 0: no public address."""
    generation: int = Field(1, ge=1)
    """Part of the client token, by which a repeated create makes no second instance; `qwenctl
    provision release` raises it."""


class AliyunConfig(ProviderSettings):
    """An instance of Alibaba Cloud ECS. Credentials are not here: the SDK finds them in its
    environment variables, its profile file, or the RAM role of the machine that the proxy runs on."""

    sample: ClassVar[str] = """\
# An instance that exists: `qwenctl import aliyun INSTANCE_ID --region REGION` prints this table.
[gpu.{name}.aliyun]
region = ""       # fill in, such as "cn-hangzhou"
instance_id = ""  # fill in, such as "i-bp1abcdefgh"; pay-as-you-go or spot, no local disks

# Or let `qwenctl provision create` make one from this and fill in instance_id:
# [gpu.{name}.aliyun.template]
# image_id = "ubuntu_22_04_x64_20G_alibase_20250722.vhd"
# instance_type = "ecs.gn7i-c8g1.2xlarge"
# vswitch_id = "vsw-bp1abcdefgh"
# security_group_id = "sg-bp1abcdefgh"
# system_disk_gb = 100
# ram_role_name = "qwenctl-node"  # lets the node stop itself: `qwenctl permissions aliyun --node`
"""

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
    """The instance that `qwenctl provision create` makes."""

    @field_validator("endpoint", "ram_endpoint")
    @classmethod
    def _host(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9.-]+(:[0-9]{1,5})?)?", value):
            raise ValueError(
                "an endpoint is host or host:port, such as ecs-vpc.cn-hangzhou.aliyuncs.com, "
                "without https:// before it"
            )
        return value

    @property
    def off_bill(self) -> OffBill:
        return "all" if self.keep_charging else "disks"


Settings = AliyunConfig
