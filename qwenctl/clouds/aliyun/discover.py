"""Read an existing ECS instance for the configuration."""

from __future__ import annotations

from qwenctl.clouds.admin import Found, Importer, ImportOption
from qwenctl.clouds.aliyun.api import Ecs, Instance
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import NotFound, ProviderError
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import is_loopback


def _read(config: AliyunConfig) -> Found:
    """Read one instance of Alibaba Cloud.

    Raises:
        ConfigError: requests would travel unprotected.
        NotFound: there is no such instance.
        ProviderError: the cloud refuses or does not answer.
    """
    if config.protocol == "http" and not is_loopback(config.endpoint.partition(":")[0]):
        raise ConfigError("--protocol http is only for an endpoint on this machine")
    ecs = Ecs(config)
    raw = ecs.instance(config.instance_id)
    if not raw:
        raise NotFound(f"there is no instance {config.instance_id} in {config.region}")
    try:
        seen = Instance.from_api(raw)
    except (KeyError, TypeError, AttributeError):
        raise ecs.garbage("DescribeInstances") from None
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
            price, currency = ecs.price(
                seen.type,
                zone=str(raw.get("ZoneId") or ""),
                vpc=seen.vpc,
                spot_strategy=strategy,
            )
        except ProviderError as error:
            warnings.append(f"the price could not be asked: {error}")
    addresses = {"private": seen.private_ip, "eip": seen.eip, "public": seen.public_ip}
    given = {"region", "instance_id", "endpoint", "protocol"}
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
        settings=config.model_dump(include=given, exclude_defaults=True),
        price=price,
        currency=currency,
        warnings=tuple(warnings),
    )


IMPORTER = Importer(
    cloud="Alibaba Cloud",
    help="Read an instance of Alibaba Cloud: type, price, addresses, billing.",
    region="cn-hangzhou",
    instance_id="i-bp1abcdefgh",
    read=_read,
    options=(
        ImportOption(
            "endpoint",
            "HOST",
            "The ECS API, such as ecs-vpc.cn-hangzhou.aliyuncs.com. Default: the region's.",
        ),
        ImportOption("protocol", "TEXT", "https or http.", hidden=True),
    ),
)
