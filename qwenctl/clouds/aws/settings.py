"""Settings of AWS EC2: ``[gpu.NAME.aws]``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qwenctl.clouds.base import ProviderSettings
from qwenctl.core.words import OffBill
from qwenctl.lib.settings_types import Duration, Table


class AwsTemplate(Table):
    """The instance that `qwenctl provision create` makes on EC2: on-demand or spot, stopped by an OS
    shutdown, with IMDSv2 only."""

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
    """``spot`` is cheaper and may be reclaimed; its persistent request then stops it."""
    max_price: float = Field(0.0, ge=0)
    """With ``spot``: the most to pay for an hour, in USD; 0: up to the on-demand price."""
    root_volume_gb: int = Field(0, ge=0, le=16384)
    """Size of the root volume (gp3) in GiB; 0: the image's own. It is billed while stopped, too."""
    public_ip: bool = False
    """Give it a public address, which changes with each start."""
    generation: int = Field(1, ge=1)
    """Part of the client token, by which a repeated create makes no second instance; `qwenctl
    provision release` raises it."""


class AwsConfig(ProviderSettings):
    """An instance of AWS EC2. Credentials are not here: boto3 finds them in its environment
    variables, its profile file, or the instance profile of the machine that the proxy runs on."""

    sample: ClassVar[str] = """\
# An instance that exists: `qwenctl import aws INSTANCE_ID --region REGION` prints this table.
[gpu.{name}.aws]
region = ""       # fill in, such as "us-east-1"
instance_id = ""  # fill in, such as "i-0123456789abcdef0"; its root volume on EBS

# Or let `qwenctl provision create` make one from this and fill in instance_id:
# [gpu.{name}.aws.template]
# image_id = "ami-0123456789abcdef0"
# instance_type = "g5.xlarge"
# subnet_id = "subnet-0123456789abcdef0"
# security_group_ids = ["sg-0123456789abcdef0"]
# root_volume_gb = 100
"""

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
    """The instance that `qwenctl provision create` makes."""

    @property
    def off_bill(self) -> OffBill:
        return "disks"


Settings = AwsConfig
