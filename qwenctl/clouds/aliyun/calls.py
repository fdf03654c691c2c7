"""ECS calls that administration needs and the provider does not."""

from __future__ import annotations

import json
from typing import Any

from qwenctl.clouds.aliyun.api import Ecs, arn_of
from qwenctl.clouds.base import Transient

__all__ = [
    "aliyun_price",
    "ecs_instance",
    "ecs_instance_role",
]


def ecs_instance(ecs: Ecs, instance_id: str) -> dict[str, Any]:
    """All that DescribeInstances says of the instance; empty if there is none."""
    answer = ecs.call(
        "DescribeInstances",
        arn_of(ecs.region, instance_id),
        InstanceIds=json.dumps([instance_id]),
    )
    try:
        found: list[dict[str, Any]] = answer["Instances"]["Instance"]
        return next((one for one in found if one["InstanceId"] == instance_id), {})
    except (KeyError, TypeError):
        raise Transient("the answer to DescribeInstances is not one of the ECS API") from None


def ecs_instance_role(ecs: Ecs, instance_id: str) -> str:
    """The name of the instance's RAM role; empty if it has none.

    Raises:
        ProviderError: it cannot be asked.
    """
    answer = ecs.call(
        "DescribeInstanceRamRole",
        arn_of(ecs.region, instance_id),
        InstanceIds=json.dumps([instance_id]),
    )
    try:
        found = answer["InstanceRamRoleSets"]["InstanceRamRoleSet"]
        names = [one.get("RamRoleName") for one in found if one["InstanceId"] == instance_id]
    except (KeyError, TypeError, AttributeError):
        raise Transient("the answer to DescribeInstanceRamRole is not one of the ECS API") from None
    return str(names[0] or "") if names else ""


def aliyun_price(
    ecs: Ecs, instance_type: str, *, zone: str = "", vpc: bool = True, spot_strategy: str = "NoSpot"
) -> tuple[float, str]:
    """What an hour of that instance type costs, disks aside, and in which currency.

    Raises:
        ProviderError: it cannot be asked.
    """
    answer = ecs.call(
        "DescribePrice",
        "*",
        ResourceType="instance",
        InstanceType=instance_type,
        InstanceNetworkType="vpc" if vpc else "classic",
        PriceUnit="Hour",
        Period=1,
        Amount=1,
        SpotStrategy=spot_strategy,
        **({"ZoneId": zone} if zone else {}),
    )
    try:
        price = answer["PriceInfo"]["Price"]
        details = (price.get("DetailInfos") or {}).get("DetailInfo") or ()
        # The total has a default system disk in it, which costs when the instance is stopped, too.
        own = [one["TradePrice"] for one in details if one.get("Resource") == "instanceType"]
        return float(own[0] if own else price["TradePrice"]), str(price.get("Currency") or "")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Transient("the answer to DescribePrice is not one of the ECS API") from None
