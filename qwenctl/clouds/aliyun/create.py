"""Create and release ECS instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenctl.clouds.admin import Existing, LaunchRequest, Price
from qwenctl.clouds.aliyun.api import Ecs, Instance
from qwenctl.clouds.aliyun.calls import aliyun_price, ecs_call, ecs_instance
from qwenctl.clouds.aliyun.launch import aliyun_launch, spot_strategy
from qwenctl.clouds.aliyun.settings import AliyunTemplate
from qwenctl.clouds.base import ProviderError, Transient, expect_dry_run
from qwenctl.errors import UserError

__all__ = [
    "AliyunCreator",
]


class AliyunCreator:
    """Creates on ECS: a `InstanceCreator`."""

    def __init__(
        self,
        ecs: Ecs,
        template: AliyunTemplate,
        request: LaunchRequest,
        *,
        keep_charging: bool = False,
    ) -> None:
        """Raises UserError if a stop would not end the billing of such an instance."""
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
        answer = ecs_call(
            self._ecs,
            "DescribeInstances",
            self._resource("*"),
            Tags=[{"Key": key, "Value": value} for key, value in self.request.tags.items()],
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
        expect_dry_run(lambda: self._run(DryRun=True))

    def run(self) -> str:
        answer = self._run()
        try:
            return str(answer["InstanceIdSets"]["InstanceIdSet"][0])
        except (KeyError, TypeError, IndexError):
            raise Transient("the answer to RunInstances is not one of the ECS API") from None

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        expect_dry_run(lambda: self._delete(existing, force, DryRun=True))

    def delete(self, existing: Existing, *, force: bool) -> None:
        self._delete(existing, force)

    def _run(self, **more: Any) -> dict[str, Any]:
        request = self.request
        parameters = aliyun_launch(self._template, request.tags, request.token, request.user_data)
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
