"""What happens in the fake cloud: instances, their states, addresses, billing and stock.

As the API reference has it: a stop in economical mode where that has no effect is not refused, the
instance just goes on being billed; an instance stopped in economical mode loses its public address
and needs stock to start; nothing can be started or stopped in a passing state; the same client token
makes no second instance, not even after the first has been released.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fake_ecs.errors import ApiError
from tests.support.fake_ecs.ram import Ram
from tests.support.program import inherited

__all__ = ["ECS", "GROUP", "RAM", "Cloud", "FakeInstance"]

ECS, RAM = "2014-05-26", "2015-05-01"
"""The APIs that there are, by the version that a request names."""

ZONE = "cn-hangzhou-i"
GROUP = "sg-bp1fake"
"""The one security group, which all instances are in."""
PAGE = 100
MAX_USER_DATA = 32 * 1024
"""Bytes, before base64."""

_OF_ONE_CALL = {
    "AccessKeyId",
    "ClientToken",
    "DryRun",
    "SecurityToken",
    "Signature",
    "SignatureNonce",
    "Timestamp",
}
"""Parameters that may differ between two calls with the same client token."""


@dataclass
class FakeInstance:
    """One instance. Seconds are latencies; set any field at any time."""

    id: str
    start_seconds: float = 0.3
    stop_seconds: float = 0.3
    status: str = "Stopped"
    stopped_mode: str = "StopCharging"
    type: str = "ecs.gn7i-c8g1.2xlarge"
    charge_type: str = "PostPaid"
    spot_strategy: str = "NoSpot"
    vpc: bool = True
    local_disks: int = 0
    private_ip: str = "192.168.7.10"
    has_public_ip: bool = False
    public_ip: str = ""
    eip: str = ""
    locks: list[str] = field(default_factory=list)
    in_stock: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)
    ram_role: str = ""
    agent: Mapping[str, str] = field(default_factory=dict)
    """Settings of the real agent that runs while the instance does (``QWENCTL_NODE__…``); none:
    no agent."""
    agent_log: Path | None = None
    starts: int = 0
    """Start calls accepted; `stops` likewise."""
    stops: int = 0
    turn: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def economical(self) -> bool:
        """Whether economical mode has an effect on it."""
        local = self.local_disks or self.type.startswith(("ecs.i2", "ecs.d1", "ecs.gn5-"))
        return self.charge_type == "PostPaid" and self.vpc and not local


class Cloud:
    """All instances of one region, and the account's RAM. Thread-safe."""

    def __init__(self, region: str = "cn-hangzhou", *, default_mode: str = "KeepCharging") -> None:
        """``default_mode``: what StopInstance does without ``StoppedMode``, an account's setting."""
        self.region = region
        self.ram = Ram()
        self.default_mode = default_mode
        self.instances: dict[str, FakeInstance] = {}
        self.permits: list[dict[str, Any]] = []
        """The inbound rules of the security group."""
        self.in_stock = True
        """Whether there are machines for new instances."""
        self.quota = 100
        """How many instances the account may have."""
        self.accepted: Counter[str] = Counter()
        """Calls by action that were not refused."""
        self._tokens: dict[str, tuple[dict[str, str], str]] = {}
        """Client token -> the parameters that it came with, and the instance that it made."""
        self._made = itertools.count(1)
        self._addresses = (f"47.96.{n // 250}.{n % 250 + 1}" for n in itertools.count())
        self._lock = threading.RLock()

    def add(self, id_: str = "i-bp1fake0001", **fields: Any) -> FakeInstance:
        """A new instance, stopped in economical mode unless the fields say otherwise."""
        instance = self.instances[id_] = FakeInstance(id_, **fields)
        if instance.status != "Stopped":
            instance.stopped_mode = "Not-applicable"
        return instance

    def do(self, action: str, parameters: Mapping[str, str], version: str = ECS) -> dict[str, Any]:
        """The answer to a call of that API, without its request id.

        Raises:
            ApiError: it is refused.
        """
        method = getattr(self.ram if version == RAM else self, f"_do_{action}", None)
        if method is None:
            raise ApiError(404, "InvalidApi.NotFound", "Specified api is not found.")
        if version == ECS and parameters.get("RegionId") != self.region:
            raise ApiError(404, "InvalidRegionId.NotFound")
        with self._lock:
            answer: dict[str, Any] = method(parameters)
            self.accepted[action] += 1
            return answer

    def close(self) -> None:
        """End the agents."""
        with self._lock:
            for instance in self.instances.values():
                instance.turn += 1
                _end_agent(instance)

    # Calls

    def _do_DescribeInstances(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        wanted = json.loads(parameters.get("InstanceIds", "[]"))
        size, page = int(parameters.get("PageSize", 10)), int(parameters.get("PageNumber", 1))
        if not isinstance(wanted, list) or len(wanted) > PAGE or not 1 <= size <= PAGE:
            raise ApiError(400, "InvalidParameter")
        tags = _tags(parameters)
        found = [
            i
            for i in self.instances.values()
            if (i.id in wanted or not wanted) and tags.items() <= i.tags.items()
        ]
        shown = found[(page - 1) * size : page * size]
        return {
            "TotalCount": len(found),
            "PageSize": size,
            "PageNumber": page,
            "Instances": {"Instance": [self._shown(instance) for instance in shown]},
        }

    def _do_StartInstance(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        instance = self._find(parameters)
        if instance.status != "Stopped":
            raise _wrong_state()
        if "financial" in instance.locks:
            raise ApiError(400, "InvalidAccountStatus.NotEnoughBalance")
        if "security" in instance.locks:
            raise ApiError(403, "InstanceLockedForSecurity")
        if instance.stopped_mode == "StopCharging" and not instance.in_stock:
            raise ApiError(403, "OperationDenied.NoStock", "The requested resource is sold out.")
        _check_dry_run(parameters)
        instance.starts += 1
        instance.status, instance.stopped_mode = "Starting", "Not-applicable"
        if instance.has_public_ip and not instance.public_ip:
            instance.public_ip = next(self._addresses)
        self._later(instance, instance.start_seconds, self._running)
        return {}

    def _do_StopInstance(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        instance = self._find(parameters)
        if instance.status != "Running":
            raise _wrong_state()
        mode = parameters.get("StoppedMode", self.default_mode)
        if mode not in ("StopCharging", "KeepCharging"):
            raise ApiError(400, "InvalidParameter", "The specified StoppedMode is not valid.")
        _check_dry_run(parameters)
        instance.stops += 1
        instance.status = "Stopping"
        threading.Thread(target=self._shut_down, args=(instance, mode), daemon=True).start()
        return {}

    def _do_RunInstances(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        for name in ("ImageId", "InstanceType", "VSwitchId", "SecurityGroupId"):
            if not parameters.get(name):
                raise ApiError(400, f"MissingParameter.{name}", f"{name} is needed.")
        try:
            user_data = base64.b64decode(parameters.get("UserData", ""), validate=True)
        except ValueError:
            raise ApiError(400, "InvalidUserData.Base64FormatInvalid") from None
        if len(user_data) > MAX_USER_DATA:
            raise ApiError(400, "InvalidUserData.SizeExceeded")
        token = parameters.get("ClientToken", "")
        own = {name: value for name, value in parameters.items() if name not in _OF_ONE_CALL}
        if token in self._tokens:
            before, made = self._tokens[token]
            if before != own:
                raise ApiError(400, "IdempotentParameterMismatch")
            return _made(made)
        if len(self.instances) >= self.quota:
            raise ApiError(403, "QuotaExceed.ElasticQuota")
        if not self.in_stock:
            raise ApiError(403, "OperationDenied.NoStock", "The requested resource is sold out.")
        _check_dry_run(parameters)
        instance = self.add(
            f"i-bp1made{next(self._made):04d}",
            status="Pending",
            type=parameters["InstanceType"],
            charge_type=parameters.get("InstanceChargeType", "PostPaid"),
            spot_strategy=parameters.get("SpotStrategy", "NoSpot"),
            has_public_ip=parameters.get("InternetMaxBandwidthOut", "0") != "0",
            tags=_tags(parameters),
            ram_role=parameters.get("RamRoleName", ""),
        )
        if token:
            self._tokens[token] = (own, instance.id)
        self._later(instance, instance.start_seconds, self._running)
        return _made(instance.id)

    def _do_DeleteInstance(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        instance = self._find(parameters)
        if instance.status != "Stopped" and parameters.get("Force", "").lower() != "true":
            raise _wrong_state()
        _check_dry_run(parameters)
        instance.turn += 1
        _end_agent(instance)
        del self.instances[instance.id]
        return {}

    def _do_TagResources(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-tagresources"""
        if parameters.get("ResourceType") != "instance":
            raise ApiError(404, "InvalidResourceType.NotFound")
        named = itertools.takewhile(lambda n: f"ResourceId.{n}" in parameters, itertools.count(1))
        ids, tags = [parameters[f"ResourceId.{n}"] for n in named], _tags(parameters)
        if not 1 <= len(ids) <= 50:
            raise ApiError(
                400, "MissingParameter.ResourceIds" if not ids else "NumberExceed.ResourceIds"
            )
        if not 1 <= len(tags) <= 20:
            raise ApiError(400, "MissingParameter.Tags" if not tags else "NumberExceed.Tags")
        for key, value in tags.items():
            if not 1 <= len(key) <= 128 or key.startswith(("aliyun", "acs:")) or "://" in key:
                raise ApiError(400, "InvalidTagKey.Malformed")
            if len(value) > 128 or value.startswith("acs:") or "://" in value:
                raise ApiError(400, "InvalidTagValue.Malformed")
        for id_ in ids:
            if id_ not in self.instances:
                raise ApiError(404, "InvalidResourceId.NotFound")
        for id_ in ids:
            self.instances[id_].tags = {**self.instances[id_].tags, **tags}
        return {}

    def _do_DescribeInstanceRamRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        wanted, role = _ids(parameters), parameters.get("RamRoleName", "")
        if not wanted and not role:
            raise ApiError(400, "MissingParameter", "InstanceIds or RamRoleName is needed.")
        found = [
            {"InstanceId": i.id, "RamRoleName": i.ram_role}
            for i in self.instances.values()
            if i.ram_role and (i.id in wanted or not wanted) and role in ("", i.ram_role)
        ]
        return {
            "RegionId": self.region,
            "TotalCount": len(found),
            "InstanceRamRoleSets": {"InstanceRamRoleSet": found},
        }

    def _do_AttachInstanceRamRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        ids, name = _ids(parameters), parameters.get("RamRoleName", "")
        if name not in self.ram.roles:
            raise ApiError(
                404, "InvalidRamRole.NotFound", "The specified RamRoleName does not exist."
            )
        if not self.ram.roles[name].for_ecs:
            raise ApiError(
                404,
                "InvalidRamRole.NotEcsRole",
                "The specified ram role is not authorized for ecs, please check your role policy.",
            )
        for id_ in ids:
            self._find({"InstanceId": id_})
        results = [_attached(self.instances[id_], name) for id_ in ids]
        return {
            "RamRoleName": name,
            "TotalCount": len(ids),
            "FailCount": sum(not one["Success"] for one in results),
            "AttachInstanceRamRoleResults": {"AttachInstanceRamRoleResult": results},
        }

    def _do_DescribeSecurityGroupAttribute(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        _check_group(parameters)
        return {"SecurityGroupId": GROUP, "Permissions": {"Permission": self.permits}}

    def _do_AuthorizeSecurityGroup(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        _check_group(parameters)
        fields = ("PortRange", "SourceCidrIp", "Ipv6SourceCidrIp", "SourceGroupId", "Description")
        permit = {field: parameters.get(field, "") for field in fields}
        self.permits.append({**permit, "IpProtocol": "TCP", "Policy": "Accept"})
        return {}

    def _do_DescribePrice(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        if parameters.get("ResourceType") != "instance" or parameters["PriceUnit"] != "Hour":
            raise ApiError(400, "InvalidParameter")
        spot = parameters.get("SpotStrategy", "NoSpot") != "NoSpot"
        own = {"Resource": "instanceType", "TradePrice": 1.98 if spot else 9.9}
        disk = {"Resource": "systemDisk", "TradePrice": 0.06}
        price = {
            "TradePrice": own["TradePrice"] + 0.06,
            "Currency": "CNY",
            "DetailInfos": {"DetailInfo": [own, disk]},
        }
        return {"PriceInfo": {"Price": price, "Rules": {"Rule": []}}}

    def _find(self, parameters: Mapping[str, str]) -> FakeInstance:
        try:
            return self.instances[parameters["InstanceId"]]
        except KeyError:
            raise ApiError(
                404, "InvalidInstanceId.NotFound", "The specified InstanceId does not exist."
            ) from None

    # What happens by and by

    def _later(self, instance: FakeInstance, seconds: float, what: Any) -> None:
        instance.turn += 1
        turn = instance.turn

        def run() -> None:
            with self._lock:
                if instance.turn == turn:
                    what(instance)

        timer = threading.Timer(seconds, run)
        timer.daemon = True
        timer.start()

    def _running(self, instance: FakeInstance) -> None:
        instance.status = "Running"
        if instance.agent:
            # A real instance knows nothing of the proxy's settings.
            env = inherited()
            env |= instance.agent
            env["QWENCTL_NODE__BOOT_ID"] = uuid.uuid4().hex
            env["QWENCTL_NODE__BOOTED_AT"] = str(time.monotonic())
            with (instance.agent_log or Path(os.devnull)).open("ab") as log:
                instance.process = subprocess.Popen(
                    [sys.executable, "-m", "gpu_node"],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def _shut_down(self, instance: FakeInstance, mode: str) -> None:
        _end_agent(instance)

        def stopped(instance: FakeInstance) -> None:
            self._stopped(instance, mode)

        with self._lock:
            self._later(instance, instance.stop_seconds, stopped)

    def _stopped(self, instance: FakeInstance, mode: str) -> None:
        instance.status = "Stopped"
        if instance.charge_type == "PrePaid":
            instance.stopped_mode = "Not-applicable"
        elif mode == "StopCharging" and instance.economical:
            instance.stopped_mode = "StopCharging"
            instance.public_ip = ""
        else:
            instance.stopped_mode = "KeepCharging"

    def _shown(self, instance: FakeInstance) -> dict[str, Any]:
        """As DescribeInstances has it."""
        addresses = [instance.public_ip] if instance.public_ip else []
        return {
            "InstanceId": instance.id,
            "InstanceName": instance.id,
            "RegionId": self.region,
            "ZoneId": ZONE,
            "Status": instance.status,
            "StoppedMode": instance.stopped_mode,
            "InstanceType": instance.type,
            "InstanceTypeFamily": instance.type.rpartition(".")[0],
            "InstanceChargeType": instance.charge_type,
            "SpotStrategy": instance.spot_strategy,
            "InstanceNetworkType": "vpc" if instance.vpc else "classic",
            "LocalStorageAmount": instance.local_disks,
            "SecurityGroupIds": {"SecurityGroupId": [GROUP]},
            "GPUAmount": 1,
            "GPUSpec": "NVIDIA A10",
            "Cpu": 8,
            "Memory": 30720,
            "Tags": {"Tag": [{"TagKey": k, "TagValue": v} for k, v in instance.tags.items()]},
            "CreationTime": "2026-01-02T03:04Z",
            "VpcAttributes": {
                "VpcId": "vpc-bp1fake" if instance.vpc else "",
                "PrivateIpAddress": {"IpAddress": [instance.private_ip] if instance.vpc else []},
            },
            "InnerIpAddress": {"IpAddress": [] if instance.vpc else [instance.private_ip]},
            "PublicIpAddress": {"IpAddress": addresses},
            "EipAddress": {
                "IpAddress": instance.eip,
                "AllocationId": "eip-bp1fake" if instance.eip else "",
            },
            "OperationLocks": {
                "LockReason": [{"LockReason": reason, "LockMsg": ""} for reason in instance.locks]
            },
        }


def _check_group(parameters: Mapping[str, str]) -> None:
    if parameters.get("SecurityGroupId") != GROUP:
        raise ApiError(404, "InvalidSecurityGroupId.NotFound")


def _ids(parameters: Mapping[str, str]) -> list[str]:
    """A JSON array of instance ids."""
    try:
        found = json.loads(parameters.get("InstanceIds") or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) > PAGE:
        raise ApiError(400, "InvalidInstanceIds.Malformed")
    return found


def _attached(instance: FakeInstance, role: str) -> dict[str, Any]:
    """The result for one of the instances that a role is attached to.

    The reference says that one with a role is refused, and names no code for that: nobody may rely
    on this one.
    """
    free = not instance.ram_role
    if free:
        instance.ram_role = role
    return {
        "InstanceId": instance.id,
        "Success": free,
        "Code": "200" if free else "InvalidInstance.UnknownCode",
        "Message": "success" if free else "The instance has an instance RAM role already.",
    }


def _tags(parameters: Mapping[str, str]) -> dict[str, str]:
    """The tags that a call names: ``Tag.1.Key``, ``Tag.1.Value``, …"""
    named = itertools.takewhile(lambda n: f"Tag.{n}.Key" in parameters, itertools.count(1))
    return {parameters[f"Tag.{n}.Key"]: parameters.get(f"Tag.{n}.Value", "") for n in named}


def _made(instance_id: str) -> dict[str, Any]:
    return {"OrderId": "1", "InstanceIdSets": {"InstanceIdSet": [instance_id]}}


def _wrong_state() -> ApiError:
    return ApiError(
        403,
        "IncorrectInstanceStatus",
        "The current status of the resource does not support this operation.",
    )


def _check_dry_run(parameters: Mapping[str, str]) -> None:
    if parameters.get("DryRun", "").lower() == "true":
        raise ApiError(
            400,
            "DryRunOperation",
            "Request validation has been passed with DryRun flag set.",
        )


def _end_agent(instance: FakeInstance) -> None:
    process, instance.process = instance.process, None
    if process is not None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
