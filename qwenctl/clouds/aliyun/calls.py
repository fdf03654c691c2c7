"""ECS calls that administration needs and the provider does not."""

from __future__ import annotations

import json
import time
from typing import Any

from qwenctl.clouds.aliyun.api import Credentials, Ecs
from qwenctl.clouds.base import Transient

__all__ = [
    "aliyun_price",
    "aliyun_source",
    "ecs_call",
    "ecs_instance",
    "ecs_instance_role",
]


# Alibaba Cloud


def ecs_call(ecs: Ecs, action: str, resource: str, **parameters: object) -> dict[str, Any]:
    """The answer to one call of the ECS API.

    Args:
        ecs: where and as whom.
        action: such as ``DescribePrice``.
        resource: what it is about, for the sentence of a refusal.
        parameters: as the SDK names them.

    Raises:
        ProviderError: it is refused or not answered.
    """
    return ecs.call(action, time.monotonic() + ecs.patience, resource=resource, **parameters)


def ecs_instance(ecs: Ecs, instance_id: str) -> dict[str, Any]:
    """All that DescribeInstances says of the instance; empty if there is none."""
    answer = ecs_call(
        ecs,
        "DescribeInstances",
        f"acs:ecs:{ecs.region}:*:instance/{instance_id}",
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
    answer = ecs_call(
        ecs,
        "DescribeInstanceRamRole",
        f"acs:ecs:{ecs.region}:*:instance/{instance_id}",
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
    answer = ecs_call(
        ecs,
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


_ALIYUN_SOURCES = {
    "env": "environment variables",
    "static_ak": "environment variables",
    "oidc_role_arn": "the OIDC token of this pod",
    "cli_profile": "~/.aliyun/config.json",
    "profile": "~/.alibabacloud/credentials.ini",
    "ecs_ram_role": "the RAM role of this machine",
    "url": "ALIBABA_CLOUD_CREDENTIALS_URI",
}


def aliyun_source(credentials: Credentials) -> str:
    """Where the credentials come from, for people.

    Raises:
        Exception: there are none (the SDK's own kinds, whose text is not fit to show).
    """
    name = str(credentials.get_credentials().get_provider_name() or "")
    parts = [part for part in name.split("/") if part != "default"]
    return next((_ALIYUN_SOURCES[p] for p in parts if p in _ALIYUN_SOURCES), "/".join(parts))
