"""Read an existing EC2 instance for the configuration."""

from __future__ import annotations

from typing import Any

from qwenctl.clouds.admin import Found, Importer, ImportOption
from qwenctl.clouds.aws.api import Account, account_of, observation
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import NotFound, ProviderError


def _read(config: AwsConfig) -> Found:
    """Read one instance of EC2.

    Raises:
        NotFound: there is no such instance.
        ProviderError: the cloud refuses or does not answer.
    """
    account = account_of(config)
    raw = account.instance(config.instance_id)
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
    given = {"region", "instance_id", "profile", "endpoint_url"}
    return Found(
        cloud="aws",
        type=str(raw.get("InstanceType") or ""),
        market=lifecycle or "on-demand",
        addresses={kind: str(address) for kind, address in addresses.items() if address},
        settings=config.model_dump(include=given, exclude_defaults=True),
        warnings=tuple(warnings),
    )


def _spot_warnings(account: Account, instance_id: str, request: str) -> list[str]:
    answer = account.ask(
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


IMPORTER = Importer(
    cloud="AWS",
    help="Read an instance of AWS EC2: type, addresses, market. EC2's API has no prices.",
    region="us-east-1",
    instance_id="i-0123456789abcdef0",
    read=_read,
    options=(
        ImportOption("profile", "NAME", "A profile of the AWS config."),
        ImportOption(
            "endpoint_url",
            "URL",
            "The EC2 API. Default: the region's.",
            form="an URL begins with https:// or http://",
        ),
    ),
)
