"""Read an existing ECS instance for the configuration."""

from __future__ import annotations

from qwenctl.clouds.admin import Found
from qwenctl.clouds.aliyun.api import Ecs, Instance
from qwenctl.clouds.aliyun.calls import aliyun_price, ecs_instance
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import NotFound, ProviderError, Transient

__all__ = [
    "read_aliyun",
]


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
