"""An instance template of the configuration as the clouds' ``RunInstances`` wants it.

Pure: it makes parameters; `qwenctl.creating` sends them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from qwenctl.config import AliyunTemplate, AwsTemplate

__all__ = [
    "aliyun_launch",
    "aws_launch",
    "client_token",
    "missing_keys",
    "spot_strategy",
    "tags_of",
]

_REQUIRED = {
    AliyunTemplate: ("image_id", "instance_type", "vswitch_id", "security_group_id"),
    AwsTemplate: ("image_id", "instance_type", "subnet_id", "security_group_ids"),
}


def tags_of(deployment: str, gpu: str) -> dict[str, str]:
    """The tags by which an instance is known as made by us for this GPU."""
    return {"qwenctl:deployment": deployment, "qwenctl:gpu": gpu}


def client_token(deployment: str, gpu: str, generation: int) -> str:
    """What makes a repeated call create nothing, at most 64 characters.

    The template is deliberately not part of it: a call repeated after the template was edited is
    refused by the cloud, where another token would make a second instance.
    """
    text = "\n".join((deployment, gpu, str(generation)))
    return f"qwenctl-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def missing_keys(template: AliyunTemplate | AwsTemplate) -> list[str]:
    """The keys without which nothing can be created, as far as they are not set."""
    return [key for key in _REQUIRED[type(template)] if not getattr(template, key)]


def spot_strategy(template: AliyunTemplate) -> str:
    """``SpotStrategy`` of Alibaba Cloud."""
    if template.market != "spot":
        return "NoSpot"
    return "SpotWithPriceLimit" if template.spot_price_limit else "SpotAsPriceGo"


def aliyun_launch(
    template: AliyunTemplate, tags: Mapping[str, str], token: str, user_data: str
) -> dict[str, Any]:
    """The parameters of ``RunInstances`` on Alibaba Cloud, as the SDK names them."""
    parameters: dict[str, Any] = {
        "ClientToken": token,
        "Amount": 1,
        "MinAmount": 1,
        "InstanceName": _name(tags),
        "ImageId": template.image_id,
        "InstanceType": template.instance_type,
        "VSwitchId": template.vswitch_id,
        "SecurityGroupId": template.security_group_id,
        "InstanceChargeType": "PostPaid",
        "SpotStrategy": spot_strategy(template),
        "SystemDiskCategory": template.system_disk_category,
        "InternetMaxBandwidthOut": template.public_bandwidth_mbps,
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        "UserData": base64.b64encode(user_data.encode()).decode(),
    }
    if template.market == "spot":
        # The default releases the instance, with its disk, when it is taken back.
        parameters["SpotInterruptionBehavior"] = "Stop"
        if template.spot_price_limit:
            parameters["SpotPriceLimit"] = template.spot_price_limit
    if template.public_bandwidth_mbps:
        parameters["InternetChargeType"] = "PayByTraffic"
    optional = {
        "ZoneId": template.zone_id,
        "SystemDiskSize": template.system_disk_gb,
        "KeyPairName": template.key_pair_name,
        "RamRoleName": template.ram_role_name,
    }
    return parameters | {key: value for key, value in optional.items() if value}


def aws_launch(
    template: AwsTemplate,
    tags: Mapping[str, str],
    token: str,
    user_data: str,
    *,
    root_device: str = "",
) -> dict[str, Any]:
    """The parameters of ``RunInstances`` on EC2, as boto3 names them.

    Args:
        template: what is wanted.
        tags: see `tags_of`.
        token: see `client_token`.
        user_data: cloud-init's, as text.
        root_device: what the image calls its root volume; needed with ``root_volume_gb``.
    """
    named = [{"Key": key, "Value": value} for key, value in tags.items()]
    named.append({"Key": "Name", "Value": _name(tags)})
    kinds = ["instance", "volume"]
    parameters: dict[str, Any] = {
        "ClientToken": token,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": template.image_id,
        "InstanceType": template.instance_type,
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required"},
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": template.subnet_id,
                "Groups": list(template.security_group_ids),
                "AssociatePublicIpAddress": template.public_ip,
            }
        ],
        "UserData": user_data,
    }
    if template.market == "spot":
        # Any other kind of request cannot be stopped and started.
        spot = {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}
        if template.max_price:
            spot["MaxPrice"] = f"{template.max_price:.5f}"  # never 1e-05
        parameters["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
        kinds.append("spot-instances-request")
    if template.root_volume_gb:
        volume = {
            "VolumeSize": template.root_volume_gb,
            "VolumeType": "gp3",
            "DeleteOnTermination": True,
        }
        parameters["BlockDeviceMappings"] = [{"DeviceName": root_device, "Ebs": volume}]
    if template.key_name:
        parameters["KeyName"] = template.key_name
    if template.instance_profile:
        parameters["IamInstanceProfile"] = {"Name": template.instance_profile}
    parameters["TagSpecifications"] = [{"ResourceType": kind, "Tags": named} for kind in kinds]
    return parameters


def _name(tags: Mapping[str, str]) -> str:
    return f"qwenctl-{tags['qwenctl:deployment']}-{tags['qwenctl:gpu']}"
