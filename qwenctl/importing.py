"""Reads an instance that exists and writes the configuration for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwenctl.cloud_api import aliyun_price, ec2_call, ec2_instance, ecs_instance
from qwenctl.config import AliyunConfig, AwsConfig
from qwenctl.providers.aliyun import Ecs, Instance
from qwenctl.providers.aws import Account, observation
from qwenctl.providers.base import NotFound, ProviderError, Transient

__all__ = ["Found", "read_aliyun", "read_aws", "section"]


@dataclass(frozen=True)
class Found:
    """What the cloud says about an instance, as far as the configuration cares."""

    cloud: str
    type: str
    market: str
    """``pay-as-you-go``, ``subscription``, ``spot``, …"""
    addresses: dict[str, str]
    """``private``, ``public`` and ``eip``, those that there are."""
    settings: dict[str, Any]
    """The cloud's own table."""
    price: float | None = None
    """Per hour."""
    currency: str = ""
    warnings: tuple[str, ...] = ()


def read_aliyun(ecs: Ecs, config: AliyunConfig) -> Found:
    """One instance of Alibaba Cloud.

    Raises:
        NotFound: there is no such instance.
        ProviderError: the cloud could not be asked.
    """
    raw = ecs_instance(ecs, config.instance_id)
    if not raw:
        raise NotFound(f"there is no instance {config.instance_id} in {config.region}")
    try:
        seen = Instance.from_api(raw)
    except (KeyError, TypeError, AttributeError):
        raise Transient("the answer to DescribeInstances is not one of the ECS API") from None
    warnings = []
    if why := seen.keeps_charging:
        warnings.append(
            f"STOPPING THIS INSTANCE DOES NOT END ITS BILLING: {why}. qwenctl will not start it "
            "unless you set aliyun.keep_charging = true; better use another instance."
        )
    strategy = str(raw.get("SpotStrategy") or "NoSpot")
    price, currency = None, ""
    if seen.charge_type != "PrePaid":
        try:
            price, currency = aliyun_price(
                ecs,
                seen.type,
                zone=str(raw.get("ZoneId") or ""),
                vpc=seen.vpc,
                spot_strategy=strategy,
            )
        except ProviderError as error:
            warnings.append(f"the price could not be asked: {error}")
    addresses = {"private": seen.private_ip, "eip": seen.eip, "public": seen.public_ip}
    settings = {"region": config.region, "instance_id": seen.id}
    settings |= {key: getattr(config, key) for key in ("endpoint",) if getattr(config, key)}
    if config.protocol != "https":
        settings["protocol"] = config.protocol
    if not seen.private_ip and not seen.eip:
        warnings.append(
            "it has no private address and no EIP: its public address changes with each start"
        )
    market = {"PrePaid": "subscription", "PostPaid": "pay-as-you-go"}.get(
        seen.charge_type, seen.charge_type
    )
    return Found(
        cloud="aliyun",
        type=seen.type,
        market="spot" if strategy != "NoSpot" else market,
        addresses={kind: address for kind, address in addresses.items() if address},
        settings=settings,
        price=price,
        currency=currency,
        warnings=tuple(warnings),
    )


def read_aws(account: Account, config: AwsConfig) -> Found:
    """One instance of EC2.

    Raises:
        NotFound: there is no such instance.
        ProviderError: the cloud could not be asked.
    """
    raw = ec2_instance(account, config.instance_id)
    if not raw:
        raise NotFound(observation(config.instance_id, None).reason.partition("; ")[0])
    warnings = []
    lifecycle = str(raw.get("InstanceLifecycle") or "")
    if raw.get("RootDeviceType") == "instance-store":
        warnings.append(
            "THIS INSTANCE CANNOT BE STOPPED: its root volume is an instance store. Use one with an "
            "EBS root volume."
        )
    if lifecycle == "capacity-block":
        warnings.append("STOPPING THIS INSTANCE SAVES NOTHING: its Capacity Block is paid for.")
    elif raw.get("CapacityReservationId"):
        warnings.append(
            "STOPPING THIS INSTANCE SAVES NOTHING while its capacity reservation lasts."
        )
    if (raw.get("Placement") or {}).get("Tenancy") == "host":
        warnings.append("STOPPING THIS INSTANCE SAVES NOTHING: its Dedicated Host is billed on.")
    try:
        if account.shutdown_behavior(config.instance_id) != "stop":
            warnings.append(
                "A SHUTDOWN FROM INSIDE TERMINATES THIS INSTANCE, disk included: run `qwenctl "
                "provision --apply` to have it stopped instead."
            )
        if request := raw.get("SpotInstanceRequestId"):
            warnings += _spot_warnings(account, config.instance_id, request)
    except ProviderError as error:
        warnings.append(f"not everything could be asked: {error}")
    addresses = {"private": raw.get("PrivateIpAddress"), "public": raw.get("PublicIpAddress")}
    settings = {"region": config.region, "instance_id": config.instance_id}
    settings |= {
        key: getattr(config, key) for key in ("profile", "endpoint_url") if getattr(config, key)
    }
    return Found(
        cloud="aws",
        type=str(raw.get("InstanceType") or ""),
        market=lifecycle or "on-demand",
        addresses={kind: str(address) for kind, address in addresses.items() if address},
        settings=settings,
        warnings=tuple(warnings),
    )


def _spot_warnings(account: Account, instance_id: str, request: str) -> list[str]:
    answer = ec2_call(
        account,
        "describe_spot_instance_requests",
        instance_id,
        SpotInstanceRequestIds=[request],
    )
    about: dict[str, Any] = next(iter(answer.get("SpotInstanceRequests") or ()), {})
    if (about.get("Type"), about.get("InstanceInterruptionBehavior")) == ("persistent", "stop"):
        return []
    text = (
        "THIS SPOT INSTANCE CANNOT BE STOPPED AND STARTED: it needs a persistent request with "
        "interruption behaviour stop."
    )
    return [text]


def section(name: str, found: Found) -> str:
    """The ``[gpu.NAME]`` section, TOML."""
    lines = [f"# {found.type}, {found.market}"]
    if found.addresses:
        lines[0] += "; " + ", ".join(f"{kind} {ip}" for kind, ip in found.addresses.items())
    lines += [f"# {warning}" for warning in found.warnings]
    lines += [f"[gpu.{name}]", f"provider = {_toml(found.cloud)}"]
    if found.price is not None:
        lines.append(f"price_per_hour = {found.price:g}  # {found.currency or 'your currency'}")
    else:
        lines.append("# price_per_hour = 1.20  # for `qwenctl status`, in your currency")
    lines += [
        "# What it runs, in containers; or [[gpu.NAME.service]] tables of your own:",
        '# workload = "qwen3-vl-webui"',
        '# model = "Qwen/Qwen3-VL-8B-Instruct"',
        "",
        f"[gpu.{name}.{found.cloud}]",
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in found.settings.items()]
    # A cloud's text in a comment must not end the comment.
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines) + "\n"


def _toml(value: object) -> str:
    """Text, numbers and booleans of JSON are TOML."""
    return json.dumps(value, ensure_ascii=False)
