"""Create and release EC2 instances."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from qwenctl.clouds.admin import Existing, LaunchRequest, Price
from qwenctl.clouds.aws.api import Account, observation
from qwenctl.clouds.aws.settings import AwsTemplate
from qwenctl.clouds.base import NotFound, ProviderError, Transient, expect_dry_run


class AwsCreator:
    """Creates and deletes an EC2 instance: an `InstanceCreator`."""

    def __init__(self, account: Account, template: AwsTemplate, request: LaunchRequest) -> None:
        self._account = account
        self._template = template
        self.request = request

    def find(self) -> list[Existing]:
        filters = [
            {"Name": f"tag:{key}", "Values": [value]} for key, value in self.request.tags.items()
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
        raw = self._account.instance(instance_id)
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
                StartTime=datetime.now(timezone.utc),  # the current price only
            )
        except ProviderError as error:
            return Price(None, note=f"the spot price could not be asked: {error}")
        history = answer.get("SpotPriceHistory") or ()
        if not history:
            return Price(None, note=f"EC2 has no spot price of {template.instance_type} in {zone}")
        latest = max(history, key=lambda one: one["Timestamp"])
        return Price(float(latest["SpotPrice"]), "USD", f"spot price in {zone} now, without disks")

    def check(self) -> None:
        expect_dry_run(lambda: self._run(DryRun=True))

    def run(self) -> str:
        answer = self._run()
        try:
            return str(answer["Instances"][0]["InstanceId"])
        except (KeyError, IndexError):
            raise _not_ec2() from None

    def check_delete(self, existing: Existing, *, force: bool) -> None:  # noqa: ARG002
        expect_dry_run(lambda: self._terminate(existing, DryRun=True))

    def delete(self, existing: Existing, *, force: bool) -> None:  # noqa: ARG002
        if existing.spot_request:  # or EC2 starts another instance for the request
            self._call(
                "cancel_spot_instance_requests",
                existing.id,
                SpotInstanceRequestIds=[existing.spot_request],
            )
        self._terminate(existing)

    def _terminate(self, existing: Existing, **more: Any) -> None:
        self._call("terminate_instances", existing.id, InstanceIds=[existing.id], **more)

    def _run(self, **more: Any) -> Any:
        device = self._root_device() if self._template.root_volume_gb else ""
        parameters = launch_parameters(self._template, self.request, root_device=device)
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
        return self._account.ask(operation, instance_id, **parameters)


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


def launch_parameters(
    template: AwsTemplate, request: LaunchRequest, *, root_device: str = ""
) -> dict[str, Any]:
    """Return the parameters of ``RunInstances``, as boto3 names them.

    ``root_device``: the image's name of its root volume; needed with ``root_volume_gb``.
    """
    named = [{"Key": key, "Value": value} for key, value in request.tags.items()]
    named.append({"Key": "Name", "Value": request.name})
    kinds = ["instance", "volume"]
    parameters: dict[str, Any] = {
        "ClientToken": request.token,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": template.image_id,
        "InstanceType": template.instance_type,
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required"},
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": template.subnet_id,
                "Groups": list(template.security_group_ids),
                "AssociatePublicIpAddress": template.public_ip,
            }
        ],
        "UserData": request.user_data,
    }
    if template.market == "spot":
        # Persistent, as the interruption behaviour `stop` requires:
        # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/interruption-behavior.html.
        spot = {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}
        if template.max_price:
            spot["MaxPrice"] = f"{template.max_price:.5f}"  # never 1e-05
        parameters["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
        kinds.append("spot-instances-request")
    if template.root_volume_gb:
        volume = {
            "VolumeSize": template.root_volume_gb,
            "VolumeType": "gp3",
            "DeleteOnTermination": True,
        }
        parameters["BlockDeviceMappings"] = [{"DeviceName": root_device, "Ebs": volume}]
    if template.key_name:
        parameters["KeyName"] = template.key_name
    if template.instance_profile:
        parameters["IamInstanceProfile"] = {"Name": template.instance_profile}
    parameters["TagSpecifications"] = [{"ResourceType": kind, "Tags": named} for kind in kinds]
    return parameters
