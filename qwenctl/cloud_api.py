"""Single calls of the clouds' APIs that only the setting up needs: `doctor`, `import`, `provision`.

They go through the providers' own clients: the same credentials, time limits and sentences for what
goes wrong.
"""

from __future__ import annotations

import json
import time
from typing import Any, cast

from qwenctl.providers.aliyun import Credentials, Ecs
from qwenctl.providers.aws import Account
from qwenctl.providers.base import Transient

__all__ = [
    "aliyun_price",
    "aliyun_source",
    "aws_endpoint",
    "aws_source",
    "ec2_call",
    "ec2_instance",
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


# AWS


def ec2_call(account: Account, operation: str, instance_id: str, **parameters: Any) -> Any:
    """The answer to one call of EC2.

    Args:
        account: where and as whom.
        operation: boto3's name, such as ``describe_security_groups``.
        instance_id: what it is about, for the sentence of a refusal.
        parameters: boto3's.

    Raises:
        ProviderError: it is refused or not answered.
    """
    return account.call(instance_id, lambda client: getattr(client, operation)(**parameters))


def ec2_instance(account: Account, instance_id: str) -> dict[str, Any]:
    """All that DescribeInstances says of the instance; empty if there is none."""
    return account.describe([instance_id]).get(instance_id, {})


_AWS_SOURCES = {
    "env": "environment variables",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role that the profile assumes",
    "assume-role-with-web-identity": "the web identity token of this pod",
    "sso": "`aws sso login`",
    "login": "`aws login`",
    "custom-process": "the program that the profile names",
    "container-role": "the role of this container",
    "iam-role": "the instance profile of this machine",
}


def aws_source(account: Account) -> str:
    """Where the credentials come from, for people; empty if there are none.

    Raises:
        ProviderError: they cannot be fetched.
    """

    def ask(client: Any) -> str:
        # boto3 has no public way to ask a client for this.
        found = client._request_signer._credentials
        method = str(found.method) if found is not None else ""
        return _AWS_SOURCES.get(method, method)

    return account.call("", ask)


def aws_endpoint(account: Account) -> str:
    """The URL of the EC2 API that the account's calls go to."""
    return account.call("", lambda client: cast(str, client.meta.endpoint_url))
