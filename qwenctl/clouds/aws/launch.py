"""Parameters of RunInstances from a template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenctl.clouds.admin import instance_name
from qwenctl.clouds.aws.settings import AwsTemplate

__all__ = [
    "aws_launch",
]


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
    named.append({"Key": "Name", "Value": instance_name(tags)})
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
