"""Parameters of RunInstances from a template."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from qwenctl.clouds.admin import instance_name
from qwenctl.clouds.aliyun.settings import AliyunTemplate

__all__ = [
    "aliyun_launch",
    "spot_strategy",
]


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
        "InstanceName": instance_name(tags),
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
