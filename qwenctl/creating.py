"""Creates an instance from a template and releases it again.

Whatever is cut off may be repeated: an instance that carries our tags is taken over and none is
made, and while the cloud does not show it yet, the client token keeps it from making a second one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from qwenctl.cloud_api import aliyun_price, ec2_call, ec2_instance, ecs_call, ecs_instance
from qwenctl.config import AliyunTemplate, AwsTemplate
from qwenctl.errors import UserError
from qwenctl.lifecycle import Observed
from qwenctl.providers.aliyun import Ecs, Instance
from qwenctl.providers.aws import Account, observation
from qwenctl.providers.base import Conflict, NotFound, ProviderError, Transient
from qwenctl.templates import (
    aliyun_launch,
    aws_launch,
    client_token,
    spot_strategy,
    tags_of,
)

__all__ = [
    "AliyunMaker",
    "AwsMaker",
    "Existing",
    "Maker",
    "Order",
    "Price",
    "create",
    "may_release",
    "release",
    "the_one",
]

APPEAR_SECONDS = 60.0
"""How long an instance may stay unseen after the cloud has accepted it."""

_DRY_RUN = "DryRunOperation"
_MISMATCH = "IdempotentParameterMismatch"


@dataclass(frozen=True)
class Order:
    """What is to be created, the cloud's part aside."""

    deployment: str
    gpu: str
    generation: int
    user_data: str

    @property
    def tags(self) -> dict[str, str]:
        return tags_of(self.deployment, self.gpu)

    @property
    def token(self) -> str:
        return client_token(self.deployment, self.gpu, self.generation)


@dataclass(frozen=True)
class Existing:
    """An instance that there is."""

    id: str
    state: Observed
    tags: Mapping[str, str]
    type: str = ""
    reason: str = ""
    """Why it is in this state, as far as the cloud says."""
    spot_request: str = ""
    """EC2's id of the request that it belongs to."""


@dataclass(frozen=True)
class Price:
    """What an hour costs while the instance runs."""

    per_hour: float | None
    currency: str = ""
    note: str = ""
    """What it is for, or why there is none."""


class Maker(Protocol):
    """One cloud, for one template. Every call raises `ProviderError`."""

    order: Order

    def find(self) -> list[Existing]:
        """The instances that carry our tags and are not gone."""
        ...

    def look(self, instance_id: str) -> Existing | None:
        """That instance; None if there is none."""
        ...

    def price(self) -> Price: ...

    def check(self) -> None:
        """Ask the cloud whether it would create the instance; return if so."""
        ...

    def run(self) -> str:
        """Have it created; its id. The same call again creates none."""
        ...

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        """Ask the cloud whether it would delete that one; return if so."""
        ...

    def delete(self, existing: Existing, *, force: bool) -> None:
        """Delete it for good, with its system disk; ``force``: although it runs."""
        ...


# What to do


def create(maker: Maker, *, patience: float = APPEAR_SECONDS) -> tuple[Existing, bool]:
    """The one instance of this order, and whether it was there before.

    Args:
        maker: the cloud.
        patience: seconds to wait until the cloud shows what it has accepted.

    Raises:
        UserError: there are several, or the one that was created is gone again.
        ProviderError: the cloud refuses, or has not answered; then it may have accepted.
    """
    if found := the_one(maker):
        return found, True
    try:
        instance_id = maker.run()
    except ProviderError as error:
        if error.cloud_code == _MISMATCH:
            return _earlier(maker, patience), True
        if isinstance(error, Conflict):
            raise Transient(
                "the cloud is still at an earlier create; run the same command again in a minute",
                cloud_code=error.cloud_code,
                request_id=error.request_id,
            ) from None
        raise
    deadline = time.monotonic() + patience
    while not (seen := maker.look(instance_id)):
        if time.monotonic() >= deadline:
            raise UserError(f"{instance_id} was accepted and cannot be seen; {_anew(maker)}")
        time.sleep(1.0)
    if seen.state is Observed.ABSENT:
        why = f": {seen.reason}" if seen.reason else ""
        raise UserError(f"{instance_id} was created and is gone again{why}; {_anew(maker)}")
    return seen, False


def the_one(maker: Maker) -> Existing | None:
    """The instance that carries our tags, if there is one.

    Raises:
        UserError: there are several.
    """
    found = maker.find()
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise UserError(
            f"several instances carry the tags of gpu.{maker.order.gpu}: {ids}; put the id of the "
            "right one into the configuration as instance_id, and release the others in the console"
        )
    return found[0] if found else None


def _earlier(maker: Maker, patience: float) -> Existing:
    """The instance of an earlier call that had other settings."""
    deadline = time.monotonic() + patience
    while not (found := the_one(maker)):
        if time.monotonic() >= deadline:
            raise UserError(
                "an earlier create had other settings, and there is no instance of it; "
                + _anew(maker)
            )
        time.sleep(1.0)
    return found


def _anew(maker: Maker) -> str:
    return (
        "look in the console whether it is still there. If it is not, set generation = "
        f"{maker.order.generation + 1} in the template and run the command again"
    )


def release(maker: Maker, instance_id: str, *, force: bool = False) -> Existing | None:
    """Delete the instance for good; None if it was gone already.

    Raises:
        UserError: it does not carry our tags, or it is not stopped and ``force`` is not set.
        ProviderError: the cloud refuses, or has not answered; then it may have accepted.
    """
    existing = may_release(maker, instance_id, force=force)
    if existing is not None:
        try:
            maker.delete(existing, force=force)
        except NotFound:
            return None
    return existing


def may_release(maker: Maker, instance_id: str, *, force: bool = False) -> Existing | None:
    """The instance, if it may be released; None if it is gone.

    Raises:
        UserError: as `release`.
    """
    existing = maker.look(instance_id)
    if existing is None or existing.state is Observed.ABSENT:
        return None
    wanted = maker.order.tags
    if any(existing.tags.get(key) != value for key, value in wanted.items()):
        tags = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise UserError(
            f"{instance_id} does not carry the tags {tags}, so `qwenctl provision create` did not "
            "make it; release it in the console"
        )
    if existing.state is not Observed.STOPPED and not force:
        raise UserError(
            f"{instance_id} is {existing.state.value}; stop it first (`qwenctl down`), or use "
            "--force"
        )
    return existing


# Alibaba Cloud


class AliyunMaker:
    """Creates on ECS: a `Maker`."""

    def __init__(
        self, ecs: Ecs, template: AliyunTemplate, order: Order, *, keep_charging: bool = False
    ) -> None:
        """Raises UserError if a stop would not end the billing of such an instance."""
        self._ecs = ecs
        self._template = template
        self.order = order
        why = Instance("", "", type=template.instance_type).keeps_charging
        if why and not keep_charging:
            raise UserError(
                f"no such instance is created because stopping it would not end its billing: {why}; "
                "use another family, or set aliyun.keep_charging = true"
            )

    def find(self) -> list[Existing]:
        answer = ecs_call(
            self._ecs,
            "DescribeInstances",
            self._resource("*"),
            Tags=[{"Key": key, "Value": value} for key, value in self.order.tags.items()],
            PageSize=100,
        )
        try:
            return [_aliyun_existing(one) for one in answer["Instances"]["Instance"]]
        except (KeyError, TypeError, AttributeError):
            raise Transient("the answer to DescribeInstances is not one of the ECS API") from None

    def look(self, instance_id: str) -> Existing | None:
        raw = ecs_instance(self._ecs, instance_id)
        return _aliyun_existing(raw) if raw else None

    def price(self) -> Price:
        try:
            amount, currency = aliyun_price(
                self._ecs,
                self._template.instance_type,
                zone=self._template.zone_id,
                spot_strategy=spot_strategy(self._template),
            )
        except ProviderError as error:
            return Price(None, note=f"the price could not be asked: {error}")
        return Price(amount, currency, "without disks and traffic")

    def check(self) -> None:
        _expect_dry_run(lambda: self._run(DryRun=True))

    def run(self) -> str:
        answer = self._run()
        try:
            return str(answer["InstanceIdSets"]["InstanceIdSet"][0])
        except (KeyError, TypeError, IndexError):
            raise Transient("the answer to RunInstances is not one of the ECS API") from None

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        _expect_dry_run(lambda: self._delete(existing, force, DryRun=True))

    def delete(self, existing: Existing, *, force: bool) -> None:
        self._delete(existing, force)

    def _run(self, **more: Any) -> dict[str, Any]:
        order = self.order
        parameters = aliyun_launch(self._template, order.tags, order.token, order.user_data)
        return ecs_call(self._ecs, "RunInstances", self._resource("*"), **parameters, **more)

    def _delete(self, existing: Existing, force: bool, **more: Any) -> None:
        if force:
            more["Force"] = True
        resource = self._resource(existing.id)
        ecs_call(self._ecs, "DeleteInstance", resource, InstanceId=existing.id, **more)

    def _resource(self, instance_id: str) -> str:
        return f"acs:ecs:{self._ecs.region}:*:instance/{instance_id}"


def _aliyun_existing(raw: Mapping[str, Any]) -> Existing:
    seen = Instance.from_api(raw)
    tags = (raw.get("Tags") or {}).get("Tag") or ()
    return Existing(
        id=seen.id,
        state=seen.state,
        tags={str(tag.get("TagKey")): str(tag.get("TagValue")) for tag in tags},
        type=seen.type,
    )


# AWS


class AwsMaker:
    """Creates on EC2: a `Maker`."""

    def __init__(self, account: Account, template: AwsTemplate, order: Order) -> None:
        self._account = account
        self._template = template
        self.order = order

    def find(self) -> list[Existing]:
        filters = [
            {"Name": f"tag:{key}", "Values": [value]} for key, value in self.order.tags.items()
        ]
        states = ["pending", "running", "stopping", "stopped"]
        filters.append({"Name": "instance-state-name", "Values": states})
        answer = self._call("describe_instances", Filters=filters)
        if "Reservations" not in answer:
            raise _not_ec2()
        return [
            _aws_existing(one)
            for reservation in answer["Reservations"]
            for one in reservation.get("Instances", ())
        ]

    def look(self, instance_id: str) -> Existing | None:
        raw = ec2_instance(self._account, instance_id)
        return _aws_existing(raw) if raw else None

    def price(self) -> Price:
        template = self._template
        if template.market != "spot":
            return Price(
                None, note="EC2's API has no on-demand prices; see aws.amazon.com/ec2/pricing"
            )
        try:
            zone = self._subnet()["AvailabilityZone"]
            answer = self._call(
                "describe_spot_price_history",
                InstanceTypes=[template.instance_type],
                ProductDescriptions=["Linux/UNIX"],
                Filters=[{"Name": "availability-zone", "Values": [zone]}],
                StartTime=datetime.now(timezone.utc),  # only the one in force
            )
        except ProviderError as error:
            return Price(None, note=f"the spot price could not be asked: {error}")
        history = answer.get("SpotPriceHistory") or ()
        if not history:
            return Price(None, note=f"EC2 has no spot price of {template.instance_type} in {zone}")
        latest = max(history, key=lambda one: one["Timestamp"])
        return Price(float(latest["SpotPrice"]), "USD", f"spot price in {zone} now, without disks")

    def check(self) -> None:
        _expect_dry_run(lambda: self._run(DryRun=True))

    def run(self) -> str:
        answer = self._run()
        try:
            return str(answer["Instances"][0]["InstanceId"])
        except (KeyError, IndexError):
            raise _not_ec2() from None

    def check_delete(self, existing: Existing, *, force: bool) -> None:  # noqa: ARG002
        _expect_dry_run(lambda: self._terminate(existing, DryRun=True))

    def delete(self, existing: Existing, *, force: bool) -> None:  # noqa: ARG002
        if existing.spot_request:  # or EC2 starts another instance for it
            self._call(
                "cancel_spot_instance_requests",
                existing.id,
                SpotInstanceRequestIds=[existing.spot_request],
            )
        self._terminate(existing)

    def _terminate(self, existing: Existing, **more: Any) -> None:
        self._call("terminate_instances", existing.id, InstanceIds=[existing.id], **more)

    def _run(self, **more: Any) -> Any:
        order, device = self.order, ""
        if self._template.root_volume_gb:
            device = self._root_device()
        parameters = aws_launch(
            self._template, order.tags, order.token, order.user_data, root_device=device
        )
        return self._call("run_instances", **parameters, **more)

    def _root_device(self) -> str:
        answer = self._call("describe_images", ImageIds=[self._template.image_id])
        images = answer.get("Images") or ()
        if not images:
            raise NotFound(f"there is no image {self._template.image_id} in this region")
        return str(images[0].get("RootDeviceName") or "/dev/xvda")

    def _subnet(self) -> Mapping[str, Any]:
        answer = self._call("describe_subnets", SubnetIds=[self._template.subnet_id])
        found: list[Mapping[str, Any]] = answer.get("Subnets") or []
        if not found:
            raise NotFound(f"there is no subnet {self._template.subnet_id} in this region")
        return found[0]

    def _call(self, operation: str, instance_id: str = "", **parameters: Any) -> Any:
        return ec2_call(self._account, operation, instance_id, **parameters)


def _aws_existing(raw: Mapping[str, Any]) -> Existing:
    instance_id = str(raw.get("InstanceId") or "")
    seen = observation(instance_id, raw)
    return Existing(
        id=instance_id,
        state=seen.state,
        tags={str(tag["Key"]): str(tag["Value"]) for tag in raw.get("Tags") or ()},
        type=str(raw.get("InstanceType") or ""),
        reason=seen.reason,
        spot_request=str(raw.get("SpotInstanceRequestId") or ""),
    )


def _not_ec2() -> Transient:
    return Transient("something that is not EC2 has answered; check aws.endpoint_url")


def _expect_dry_run(call: Any) -> None:
    """Make the call with ``DryRun``, whose success is an error."""
    try:
        call()
    except ProviderError as error:
        if error.cloud_code != _DRY_RUN:
            raise
