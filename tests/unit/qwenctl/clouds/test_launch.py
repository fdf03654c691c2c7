"""Templates become exactly the calls that the clouds' own SDKs know."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from aliyunsdkecs.request.v20140526.RunInstancesRequest import RunInstancesRequest
from botocore.session import Session
from botocore.validate import validate_parameters
from pydantic import ValidationError

from qwenctl.admin.create import missing_keys
from qwenctl.clouds.admin import LaunchRequest
from qwenctl.clouds.aliyun import admin as aliyun_admin
from qwenctl.clouds.aliyun.api import ecs_of
from qwenctl.clouds.aliyun.create import launch_parameters as aliyun_launch
from qwenctl.clouds.aliyun.settings import AliyunConfig, AliyunTemplate
from qwenctl.clouds.aws import admin as aws_admin
from qwenctl.clouds.aws.api import account_of
from qwenctl.clouds.aws.create import launch_parameters as aws_launch
from qwenctl.clouds.aws.settings import AwsConfig, AwsTemplate

REQUEST = LaunchRequest("lab", "main", 1, "#cloud-config\n")

ALIYUN = {
    "image_id": "ubuntu_22_04",
    "instance_type": "ecs.gn7i-c8g1.2xlarge",
    "vswitch_id": "vsw-bp1",
    "security_group_id": "sg-bp1",
}
AWS = {
    "image_id": "ami-0123456789abcdef0",
    "instance_type": "g5.xlarge",
    "subnet_id": "subnet-0123456789abcdef0",
    "security_group_ids": ["sg-0123456789abcdef0"],
}


def aliyun(**keys: Any) -> dict[str, Any]:
    """What is sent, as the SDK sends it."""
    template = AliyunTemplate.model_validate({**ALIYUN, **keys})
    request = RunInstancesRequest()
    for key, value in aliyun_launch(template, REQUEST).items():
        getattr(request, f"set_{key}")(value)
    found: dict[str, Any] = request.get_query_params()
    return found


def aws(**keys: Any) -> dict[str, Any]:
    """What is sent, after botocore has checked it."""
    template = AwsTemplate.model_validate({**AWS, **keys})
    found = aws_launch(template, REQUEST, root_device="/dev/sda1")
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    validate_parameters(found, shape)
    return found


def test_aliyun_defaults_surprise_nobody() -> None:
    sent = aliyun()
    assert sent["Amount"] == sent["MinAmount"] == 1
    assert (sent["InstanceChargeType"], sent["SpotStrategy"]) == ("PostPaid", "NoSpot")
    assert (sent["HttpEndpoint"], sent["HttpTokens"]) == ("enabled", "required")
    assert sent["InternetMaxBandwidthOut"] == 0
    assert (sent["VSwitchId"], sent["SecurityGroupId"]) == ("vsw-bp1", "sg-bp1")
    assert base64.b64decode(sent["UserData"]) == b"#cloud-config\n"
    assert (sent["Tag.1.Key"], sent["Tag.1.Value"]) == ("qwenctl:deployment", "lab")
    assert (sent["Tag.2.Key"], sent["Tag.2.Value"]) == ("qwenctl:gpu", "main")
    for name in ("SystemDisk.Size", "ZoneId", "KeyPairName", "RamRoleName", "SpotPriceLimit"):
        assert name not in sent


def test_aliyun_spot_is_stopped_and_not_released_when_it_is_taken_back() -> None:
    sent = aliyun(market="spot", spot_price_limit=3.5)
    assert (sent["SpotStrategy"], sent["SpotPriceLimit"]) == ("SpotWithPriceLimit", 3.5)
    assert sent["SpotInterruptionBehavior"] == "Stop"
    unlimited = aliyun(market="spot")
    assert unlimited["SpotStrategy"] == "SpotAsPriceGo"
    assert unlimited["SpotInterruptionBehavior"] == "Stop"
    on_demand = aliyun(spot_price_limit=3.5)
    assert on_demand["SpotStrategy"] == "NoSpot"
    assert not {"SpotPriceLimit", "SpotInterruptionBehavior"} & set(on_demand)


def test_aliyun_options() -> None:
    sent = aliyun(
        system_disk_gb=200,
        key_pair_name="k",
        ram_role_name="r",
        zone_id="z",
        public_bandwidth_mbps=5,
    )
    assert (sent["SystemDisk.Size"], sent["SystemDisk.Category"]) == (200, "cloud_essd")
    assert (sent["KeyPairName"], sent["RamRoleName"], sent["ZoneId"]) == ("k", "r", "z")
    assert (sent["InternetMaxBandwidthOut"], sent["InternetChargeType"]) == (5, "PayByTraffic")


def test_aws_defaults_surprise_nobody() -> None:
    sent = aws()
    assert (sent["MinCount"], sent["MaxCount"]) == (1, 1)
    assert sent["InstanceInitiatedShutdownBehavior"] == "stop"
    assert sent["MetadataOptions"]["HttpTokens"] == "required"
    [card] = sent["NetworkInterfaces"]
    assert card["AssociatePublicIpAddress"] is False
    assert card["Groups"] == AWS["security_group_ids"]
    tagged = {kind["ResourceType"]: kind["Tags"] for kind in sent["TagSpecifications"]}
    assert set(tagged) == {"instance", "volume"}
    assert {"Key": "qwenctl:deployment", "Value": "lab"} in tagged["instance"]
    for name in ("InstanceMarketOptions", "BlockDeviceMappings", "KeyName", "IamInstanceProfile"):
        assert name not in sent


def test_aws_spot_can_be_stopped_and_started() -> None:
    options = aws(market="spot", max_price=0.5)["InstanceMarketOptions"]
    assert options == {
        "MarketType": "spot",
        "SpotOptions": {
            "SpotInstanceType": "persistent",
            "InstanceInterruptionBehavior": "stop",
            "MaxPrice": "0.50000",
        },
    }
    sent = aws(market="spot")
    assert "MaxPrice" not in sent["InstanceMarketOptions"]["SpotOptions"]
    kinds = [kind["ResourceType"] for kind in sent["TagSpecifications"]]
    assert "spot-instances-request" in kinds  # so that only ours can be cancelled


def test_aws_options() -> None:
    sent = aws(root_volume_gb=150, key_name="k", instance_profile="p", public_ip=True)
    [volume] = sent["BlockDeviceMappings"]
    assert volume["DeviceName"] == "/dev/sda1"
    assert volume["Ebs"] == {"VolumeSize": 150, "VolumeType": "gp3", "DeleteOnTermination": True}
    assert (sent["KeyName"], sent["IamInstanceProfile"]) == ("k", {"Name": "p"})
    assert sent["NetworkInterfaces"][0]["AssociatePublicIpAddress"] is True


def test_a_token_is_for_one_gpu_and_one_generation() -> None:
    token = LaunchRequest("lab", "main", 1, "").token
    assert token == LaunchRequest("lab", "main", 1, "#cloud-config\n").token
    assert len(token) <= 64
    others = {
        LaunchRequest("lab", "main", 2, "").token,
        LaunchRequest("lab", "big", 1, "").token,
        LaunchRequest("labmain", "", 1, "").token,
    }
    assert len(others - {token}) == 3


def test_what_is_missing() -> None:
    assert missing_keys(AliyunTemplate.model_validate(ALIYUN), aliyun_admin.REQUIRED_KEYS) == []
    without_groups = AwsTemplate.model_validate({**AWS, "security_group_ids": []})
    assert missing_keys(without_groups, aws_admin.REQUIRED_KEYS) == ["security_group_ids"]
    assert len(missing_keys(AliyunTemplate(), aliyun_admin.REQUIRED_KEYS)) == 4


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (AliyunTemplate, {"vswitch_id": "subnet-1"}),
        (AliyunTemplate, {"instance_type": "g5.xlarge"}),
        (AliyunTemplate, {"market": "reserved"}),
        (AwsTemplate, {"subnet_id": "vsw-bp1"}),
        (AwsTemplate, {"security_group_ids": ["default"]}),
        (AwsTemplate, {"root_volume_gb": -1}),
    ],
)
def test_mistakes_are_found_early(model: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(keys)


def test_a_template_does_not_keep_instances_from_sharing_a_client() -> None:
    cn = {"region": "cn-hangzhou", "instance_id": "i-1"}
    us = {"region": "us-east-1", "instance_id": "i-12345678"}
    first, second = (AliyunConfig.model_validate({**cn, "template": t}) for t in ({}, ALIYUN))
    assert ecs_of(first) is ecs_of(second)
    one, other = (AwsConfig.model_validate({**us, "template": t}) for t in ({}, AWS))
    assert account_of(one) is account_of(other)
