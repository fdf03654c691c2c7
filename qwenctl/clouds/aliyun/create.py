"""Create and release ECS instances."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from qwenctl.clouds.admin import Existing, LaunchRequest, Price
from qwenctl.clouds.aliyun.api import Ecs, Instance, arn_of
from qwenctl.clouds.aliyun.settings import AliyunTemplate
from qwenctl.clouds.base import ProviderError, expect_dry_run
from qwenctl.errors import UserError


class AliyunCreator:
    """Creates and deletes an ECS instance: an `InstanceCreator`."""

    def __init__(
        self,
        ecs: Ecs,
        template: AliyunTemplate,
        request: LaunchRequest,
        *,
        keep_charging: bool = False,
    ) -> None:
        """Raise UserError if a stop would not end the billing of such an instance."""
        self._ecs = ecs
        self._template = template
        self.request = request
        why = Instance("", "", type=template.instance_type).keeps_charging
        if why and not keep_charging:
            raise UserError(
                f"no such instance is created because stopping it would not end its billing: {why}; "
                "use another family, or set aliyun.keep_charging = true"
            )

    def find(self) -> list[Existing]:
        answer = self._ecs.call(
            "DescribeInstances",
            arn_of(self._ecs.region),
            Tags=[{"Key": key, "Value": value} for key, value in self.request.tags.items()],
            PageSize=100,
        )
        try:
            return [_aliyun_existing(one) for one in answer["Instances"]["Instance"]]
        except (KeyError, TypeError, AttributeError):
            raise self._ecs.garbage("DescribeInstances") from None

    def look(self, instance_id: str) -> Existing | None:
        raw = self._ecs.instance(instance_id)
        return _aliyun_existing(raw) if raw else None

    def price(self) -> Price:
        try:
            amount, currency = self._ecs.price(
                self._template.instance_type,
                zone=self._template.zone_id,
                spot_strategy=_spot_strategy(self._template),
            )
        except ProviderError as error:
            return Price(None, note=f"the price could not be asked: {error}")
        return Price(amount, currency, "without disks and traffic")

    def check(self) -> None:
        expect_dry_run(lambda: self._run(DryRun=True))

    def run(self) -> str:
        answer = self._run()
        try:
            return str(answer["InstanceIdSets"]["InstanceIdSet"][0])
        except (KeyError, TypeError, IndexError):
            raise self._ecs.garbage("RunInstances") from None

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        expect_dry_run(lambda: self._delete(existing, force, DryRun=True))

    def delete(self, existing: Existing, *, force: bool) -> None:
        self._delete(existing, force)

    def _run(self, **more: Any) -> dict[str, Any]:
        parameters = launch_parameters(self._template, self.request)
        resource = arn_of(self._ecs.region)
        return self._ecs.call("RunInstances", resource, **parameters, **more)

    def _delete(self, existing: Existing, force: bool, **more: Any) -> None:
        if force:
            more["Force"] = True
        resource = arn_of(self._ecs.region, existing.id)
        self._ecs.call("DeleteInstance", resource, InstanceId=existing.id, **more)


def _aliyun_existing(raw: Mapping[str, Any]) -> Existing:
    seen = Instance.from_api(raw)
    tags = (raw.get("Tags") or {}).get("Tag") or ()
    return Existing(
        id=seen.id,
        state=seen.state,
        tags={str(tag.get("TagKey")): str(tag.get("TagValue")) for tag in tags},
        type=seen.type,
    )


def _spot_strategy(template: AliyunTemplate) -> str:
    """Return ``SpotStrategy``."""
    if template.market != "spot":
        return "NoSpot"
    return "SpotWithPriceLimit" if template.spot_price_limit else "SpotAsPriceGo"


def launch_parameters(template: AliyunTemplate, request: LaunchRequest) -> dict[str, Any]:
    """Return the parameters of ``RunInstances``, as the SDK names them."""
    parameters: dict[str, Any] = {
        "ClientToken": request.token,
        "Amount": 1,
        "MinAmount": 1,
        "InstanceName": request.name,
        "ImageId": template.image_id,
        "InstanceType": template.instance_type,
        "VSwitchId": template.vswitch_id,
        "SecurityGroupId": template.security_group_id,
        "InstanceChargeType": "PostPaid",
        "SpotStrategy": _spot_strategy(template),
        "SystemDiskCategory": template.system_disk_category,
        "InternetMaxBandwidthOut": template.public_bandwidth_mbps,
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "Tags": [{"Key": key, "Value": value} for key, value in request.tags.items()],
        "UserData": base64.b64encode(request.user_data.encode()).decode(),
    }
    if template.market == "spot":
        # By default a reclaimed instance is released with its disk.
        parameters["SpotInterruptionBehavior"] = "Stop"
        if template.spot_price_limit:
            parameters["SpotPriceLimit"] = template.spot_price_limit
    if template.public_bandwidth_mbps:
        parameters["InternetChargeType"] = "PayByTraffic"
    optional = {
        "ZoneId": template.zone_id,
        "SystemDiskSize": template.system_disk_gb,
        "KeyPairName": template.key_pair_name,
        "RamRoleName": template.ram_role_name,
    }
    return parameters | {key: value for key, value in optional.items() if value}
