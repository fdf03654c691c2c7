"""The ECS API of Alibaba Cloud: instances that are stopped in economical mode.

See https://www.alibabacloud.com/help/en/ecs/user-guide/economical-mode; tests/support/fake_ecs
simulates it:

- Only ``StoppedMode=StopCharging`` ends billing, and the API does **not** refuse it where it has no
  effect (subscriptions, local disks): it stops the instance and goes on billing. So an instance
  that cannot be stopped for free is not *started* unless ``keep_charging`` says so. If it runs all
  the same, it is stopped, because running on would cost no less, and `Observation.reason` explains
  the ``StoppedMode`` that `describe` reads back.
- A stopped instance holds no machine: a start may fail for lack of stock.
- ``StartInstance`` has no client token. An unanswered start may have been accepted: it is never
  repeated here but reported as `Transient`, and the controller looks again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from qwenctl.clouds.aliyun.errors import error_of, network_error
from qwenctl.clouds.base import Denied, Observation, Transient, usable_address
from qwenctl.clouds.batch import MAX_IDS, Batch
from qwenctl.clouds.deadline import run_by, with_deadline
from qwenctl.core.claims import TAG
from qwenctl.core.phase import Observed

if TYPE_CHECKING:
    from qwenctl.clouds.aliyun.settings import AliyunConfig

TRIES = 3
"""Attempts of a look while the cloud does not answer."""

# Credentials


class Credentials(Protocol):
    """A source of AccessKeys; `alibabacloud_credentials` has the implementations."""

    def get_credentials(self) -> Any: ...


def default_credentials() -> Credentials:
    """Return Alibaba Cloud's own chain of credentials.

    In its order: environment (AccessKey, STS token), OIDC (ACK), CLI profile
    (``~/.aliyun/config.json``), profile file (``~/.alibabacloud/credentials.ini``), and the RAM
    role of the ECS instance that this runs on.
    """
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

    # It logs each miss with a traceback; we raise one sentence.
    logging.getLogger("credentials").disabled = True
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # its timers for roles, at each start
    chain: Credentials = DefaultCredentialsProvider()
    return chain


_NO_CREDENTIALS = (
    "no Alibaba Cloud credentials: set ALIBABA_CLOUD_ACCESS_KEY_ID and "
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET, run `aliyun configure`, or attach a RAM role to the ECS "
    "instance that the proxy runs on"
)


# Instances

_STATES = {
    "Pending": Observed.STARTING,
    "Starting": Observed.STARTING,
    "Running": Observed.RUNNING,
    "Stopping": Observed.STOPPING,
    "Stopped": Observed.STOPPED,
}

_LOCKS = {
    "recycling": "Alibaba Cloud is reclaiming this spot instance",
    "financial": "the instance is locked for overdue payment: top up the account",
    "dedicatedhostfinancial": "the dedicated host is locked for overdue payment: renew it",
    "security": "the instance is locked for security reasons: see its notices in the console",
    "refunded": "the instance has been refunded and is being released",
}

_KEEPS_CHARGING_FAMILIES = ("gn5", "re6p", "re6p-redis", "ebmre6p")
"""Families with local disks or persistent memory, beside all of the i and d series:
https://www.alibabacloud.com/help/en/ecs/user-guide/economical-mode."""


@dataclass(frozen=True)
class Instance:
    """The fields of DescribeInstances that qwenctl uses:
    https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-describeinstances.
    """

    id: str
    status: str
    type: str = ""
    charge_type: str = "PostPaid"
    stopped_mode: str = ""
    vpc: bool = True
    local_disks: int = 0
    private_ip: str = ""
    public_ip: str = ""
    eip: str = ""
    locks: tuple[str, ...] = ()
    claim: str = ""

    @classmethod
    def from_api(cls, data: Mapping[str, Any]) -> Instance:
        """Raise KeyError, TypeError or AttributeError if it is not an instance of the API."""
        if not isinstance(data["InstanceId"], str) or not isinstance(data["Status"], str):
            raise TypeError("id and status are no texts")
        inside = _first(data.get("VpcAttributes"), "PrivateIpAddress", "IpAddress")
        locks = (data.get("OperationLocks") or {}).get("LockReason") or ()
        tags = (data.get("Tags") or {}).get("Tag") or ()
        return cls(
            id=data["InstanceId"],
            status=data["Status"],
            type=str(data.get("InstanceType") or ""),
            charge_type=str(data.get("InstanceChargeType") or "PostPaid"),
            stopped_mode=str(data.get("StoppedMode") or ""),
            vpc=(data.get("InstanceNetworkType") or "vpc") == "vpc",
            local_disks=data.get("LocalStorageAmount") or 0,
            private_ip=inside or _first(data.get("InnerIpAddress"), "IpAddress"),
            public_ip=_first(data.get("PublicIpAddress"), "IpAddress"),
            eip=usable_address((data.get("EipAddress") or {}).get("IpAddress")),
            locks=tuple(str(lock.get("LockReason") or "") for lock in locks),
            claim=next((t.get("TagValue") or "" for t in tags if t.get("TagKey") == TAG), ""),
        )

    @property
    def state(self) -> Observed:
        return _STATES.get(self.status, Observed.UNKNOWN)

    @property
    def keeps_charging(self) -> str:
        """The reason why a stop does not end the instance's billing; empty if it does."""
        if self.charge_type == "PrePaid":
            return "it is a subscription, paid for whether it runs or not"
        if not self.vpc:
            return "it is in the classic network, which knows no economical mode"
        # ecs.gn7i-c8g1.2xlarge -> gn7i-c8g1, gn7i
        family = self.type.removeprefix("ecs.").partition(".")[0]
        series = family.partition("-")[0]
        if (
            self.local_disks
            or {family, series} & set(_KEEPS_CHARGING_FAMILIES)
            or (series[:1] in ("i", "d") and series[1:2].isdigit())
        ):
            return f"{self.type} has local disks or persistent memory, which only run billed"
        return ""

    def address(self, choice: str) -> str:
        """Return the address that ``AliyunConfig.address`` chooses, or an empty text."""
        if choice == "private":
            return self.private_ip
        if choice == "eip":
            return self.eip
        if choice == "public":
            return self.public_ip or self.eip
        return self.private_ip or self.eip or self.public_ip

    def observation(self, choice: str, *, keep_charging: bool = False) -> Observation:
        """Return the observation for the controller."""
        reasons = [
            _LOCKS.get(lock.lower(), f"the instance is locked: {lock}") for lock in self.locks
        ]
        address = self.address(choice) if self.state is Observed.RUNNING else ""
        if self.state is Observed.RUNNING and not address:
            reasons.append(f"the instance has no {choice if choice != 'auto' else 'IP'} address")
        if self.state is Observed.UNKNOWN:
            reasons.append(f"the instance is in the unknown state {self.status!r}")
        # Of an instance that is not stopped, the mode is "Not-applicable".
        billed = self.stopped_mode not in ("", "StopCharging")
        if self.state is Observed.STOPPED and billed and not keep_charging:
            why = self.keeps_charging or "it was stopped in standard mode (KeepCharging)"
            reasons.append(f"the instance is stopped and billed on: {why}")
        kept = self.address(choice)
        return Observation(
            self.state,
            self.id,
            address,
            "; ".join(reasons),
            # A stop releases the public IP only.
            claim=self.claim,
            kept_address=kept if kept in (self.private_ip, self.eip) else "",
        )


def _first(data: Any, *path: str) -> str:
    """Return the first address of the list at that path, or an empty text."""
    for key in path:
        data = (data or {}).get(key)
    return usable_address(data[0]) if isinstance(data, list) and data else ""


def _instances(answer: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Instance]:
    """Return the instances of a DescribeInstances answer, by id.

    An answer that lacks some of those it counts, or has others than were asked for, proves the
    absence of none. One that shows an instance in two states says nothing about it.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is not an answer of the API.
    """
    entries = answer["Instances"]["Instance"]
    if not isinstance(entries, list) or len(entries) < int(answer.get("TotalCount") or 0):
        raise ValueError("a partial answer")
    found: dict[str, Instance] = {}
    for seen in map(Instance.from_api, entries):
        if seen.id not in ids:
            raise ValueError("another instance")
        other = found.setdefault(seen.id, seen)
        if other.status != seen.status:
            found[seen.id] = replace(seen, status=f"{other.status} and {seen.status}")
    return found


# The API

_NO_CODE = "SDK.UnknownServerError"
"""The SDK's code for an error without one, which no answer of the API is."""


class Ecs:
    """The ECS API of a region, through the SDK, with provider errors and time limits.

    Thread-safe. A call ends at its deadline whatever the network does (`run_by`), and after its
    deadline no request is sent.
    """

    api = "ECS"
    """The API's name in sentences, and in small letters in the names of rights."""

    def __init__(self, config: AliyunConfig, credentials: Credentials | None = None) -> None:
        """Raise ModuleNotFoundError if the SDK is not installed."""
        import alibabacloud_credentials  # noqa: F401  # needed later; better missed now
        from aliyunsdkcore.http import http_response  # has a logger with a level of its own

        # The SDK logs errors that we raise, and signed URLs with AccessKey id and signature.
        logging.getLogger("aliyunsdkcore").setLevel(logging.CRITICAL + 1)
        http_response.logger.disabled = True
        self._config = config
        self._credentials = credentials
        self._client: tuple[tuple[str, str], Any] | None = None
        self._call = threading.local()
        self.region = config.region
        self.host = config.endpoint or _endpoint(config.region)
        self.protocol: str = config.protocol
        self.patience = config.connect_timeout + config.read_timeout
        """The longest time of one request in seconds."""
        self.looks = Batch(self._look)
        """Shared descriptions: ``looks.get(instance_id)``."""

    def describe(self, ids: Sequence[str], deadline: float) -> dict[str, Instance]:
        """Return the existing instances, by id; `MAX_IDS` a call."""
        found = {}
        for start in range(0, len(ids), MAX_IDS):
            some = list(ids[start : start + MAX_IDS])
            answer = self.call(
                "DescribeInstances",
                arn_of(self.region, *some),
                deadline,
                InstanceIds=json.dumps(some),
                PageSize=MAX_IDS,
            )
            try:
                found.update(_instances(answer, some))
            except (KeyError, TypeError, AttributeError, ValueError):
                raise self.garbage("DescribeInstances") from None
        return found

    def _look(self, ids: Sequence[str]) -> dict[str, Instance]:
        """Describe, and try again while the cloud does not answer."""
        deadline = time.monotonic() + 2 * self.patience
        for _ in range(TRIES - 1):
            try:
                return self.describe(ids, min(deadline, time.monotonic() + self.patience))
            except Transient:
                pause = random.uniform(0.1, 0.6)  # spreads callers that failed at the same moment
                if time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        return self.describe(ids, min(deadline, time.monotonic() + self.patience))

    def call(
        self, action: str, resource: str, deadline: float | None = None, /, **parameters: object
    ) -> dict[str, Any]:
        """Make one request once, and return its answer.

        Args:
            action: such as ``DescribePrice``.
            resource: its resource, for the sentence of a refusal.
            deadline: the call's end (monotonic); default: after `patience`.
            parameters: as the SDK names them.

        Raises:
            ProviderError: as `qwenctl.clouds.aliyun.errors` says; `Transient` when no answer came
                in time.
        """
        if deadline is None:
            deadline = time.monotonic() + self.patience
        request = self._request(action, parameters)
        request.set_endpoint(self.host)
        request.set_protocol_type(self.protocol)
        request.set_accept_format("JSON")
        return run_by(
            deadline,
            lambda: self._send(request, action, resource, deadline),
            late=self._no_answer("timed out"),
        )

    def instance(self, instance_id: str) -> dict[str, Any]:
        """Return the raw DescribeInstances entry; empty if the instance does not exist."""
        answer = self.call(
            "DescribeInstances",
            arn_of(self.region, instance_id),
            InstanceIds=json.dumps([instance_id]),
        )
        try:
            found: list[dict[str, Any]] = answer["Instances"]["Instance"]
            return next((one for one in found if one["InstanceId"] == instance_id), {})
        except (KeyError, TypeError):
            raise self.garbage("DescribeInstances") from None

    def role(self, instance_id: str) -> str:
        """Return the name of the instance's RAM role; empty if it has none."""
        answer = self.call(
            "DescribeInstanceRamRole",
            arn_of(self.region, instance_id),
            InstanceIds=json.dumps([instance_id]),
        )
        try:
            found = answer["InstanceRamRoleSets"]["InstanceRamRoleSet"]
            names = [one.get("RamRoleName") for one in found if one["InstanceId"] == instance_id]
        except (KeyError, TypeError, AttributeError):
            raise self.garbage("DescribeInstanceRamRole") from None
        return str(names[0] or "") if names else ""

    def price(
        self, instance_type: str, *, zone: str = "", vpc: bool = True, spot_strategy: str = "NoSpot"
    ) -> tuple[float, str]:
        """Return the price of an hour without disks, and its currency."""
        answer = self.call(
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
            # The total includes a default system disk, which costs while stopped, too.
            own = [one["TradePrice"] for one in details if one.get("Resource") == "instanceType"]
            return float(own[0] if own else price["TradePrice"]), str(price.get("Currency") or "")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self.garbage("DescribePrice") from None

    def _request(self, action: str, parameters: Mapping[str, object]) -> Any:
        """Return the SDK's request, without endpoint."""
        module = import_module(f"aliyunsdkecs.request.v20140526.{action}Request")
        request = getattr(module, f"{action}Request")()
        for key, value in parameters.items():
            getattr(request, f"set_{key}")(value)
        return request

    def _send(self, request: Any, action: str, resource: str, deadline: float) -> dict[str, Any]:
        from aliyunsdkcore.acs_exception.exceptions import ClientException, ServerException

        self._call.deadline = deadline
        key, secret, token = self._keys()
        client = self._client_for(key, secret)
        if token:
            request.add_query_param("SecurityToken", token)
        left = self._left()
        request.set_connect_timeout(min(self._config.connect_timeout, left))
        request.set_read_timeout(min(self._config.read_timeout, left))
        try:
            body = client.do_action_with_exception(request)
            answer = json.loads(body)
        except ServerException as error:
            if error.get_error_code() == _NO_CODE:
                raise self.garbage(action, error.get_http_status() or 0) from None
            raise error_of(
                str(error.get_error_code()),
                message=str(error.get_error_msg()),
                status=error.get_http_status() or 0,
                request_id=str(error.get_request_id() or ""),
                action=action,
                region=self.region,
                resource=resource,
                secrets=(key, secret, token),
                api=self.api,
            ) from None
        except ClientException as error:
            raise self._no_answer(str(error)) from None
        except (
            ValueError,
            LookupError,
            AttributeError,
            RecursionError,
            TypeError,
        ):  # raised by the SDK on unexpected answers
            raise self.garbage(action) from None
        if not isinstance(answer, dict) or "RequestId" not in answer:
            raise self.garbage(action)
        return answer

    def _no_answer(self, text: str) -> Transient:
        return network_error(text, self.host, self.api)

    def garbage(self, action: str, status: int = 0) -> Transient:
        with_status = f" (HTTP status {status})" if status else ""
        return Transient(
            f"the answer to {action} is not one of the {self.api} API{with_status}; is a proxy in "
            "between?"
        )

    def _left(self) -> float:
        """Return the seconds left to this thread's call.

        Raises:
            Transient: none are left. The caller has gone and would not learn of the result.
        """
        left = float(self._call.deadline) - time.monotonic()
        if left <= 0:
            raise self._no_answer("timed out")
        return left

    def _keys(self) -> tuple[str, str, str]:
        try:
            if self._credentials is None:
                self._credentials = default_credentials()
            found = self._credentials.get_credentials()
        except ImportError:
            raise
        except Exception as error:
            # The SDK's text may name files and addresses: it is not shown.
            if _passes(error):
                raise Transient(
                    "the Alibaba Cloud credentials cannot be read now (the network, or too many "
                    "open files)"
                ) from None
            missing = Denied(_NO_CREDENTIALS)
            missing.about_account = True
            raise missing from None
        return (
            found.get_access_key_id() or "",
            found.get_access_key_secret() or "",
            found.get_security_token() or "",
        )

    def _client_for(self, key: str, secret: str) -> Any:
        """Return the client, kept with its connections until the AccessKey changes."""
        from aliyunsdkcore.client import AcsClient

        if self._client is None or self._client[0] != (key, secret):
            # Two layers of retries would multiply, and a start must not be repeated at all.
            client = AcsClient(key, secret, self.region, auto_retry=False, max_retry_time=0)
            for scheme in ("https://", "http://"):
                client.session.mount(scheme, _adapter(self._left))
            self._client = ((key, secret), client)
        return self._client[1]


def _passes(error: Exception) -> bool:
    """Return whether credentials are there and cannot be read only now; requests has OSErrors."""
    lasting = (FileNotFoundError, PermissionError)
    if os.strerror(errno.EMFILE) in str(error):  # a chain quotes the errors of its sources
        return True
    return isinstance(error, OSError) and not isinstance(error, lasting)


def _adapter(check: Callable[[], object]) -> Any:
    """Make an adapter of the SDK's `requests` that calls ``check`` before it sends."""
    from aliyunsdkcore.vendored.requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):  # type: ignore[misc]
        def get_connection(self, url: str, proxies: Any = None) -> Any:
            pool = super().get_connection(url, proxies)
            if "ConnectionCls" not in vars(pool):
                pool.ConnectionCls = with_deadline(pool.ConnectionCls, check)
            return pool

    return Adapter()


def _endpoint(region: str) -> str:
    """Return the region's endpoint without asking the location service."""
    from aliyunsdkecs.endpoint import endpoint_data

    known: dict[str, str] = endpoint_data.getEndpointMap()
    return known.get(region, f"ecs.{region}.aliyuncs.com")


def arn_of(region: str, *ids: str) -> str:
    """Return RAM's resource name of an instance, or of all instances."""
    return f"acs:ecs:{region}:*:instance/{ids[0] if len(ids) == 1 else '*'}"


def ecs_of(config: AliyunConfig) -> Ecs:
    """Return the API for an instance, shared by all instances with the same settings."""
    own = {
        "instance_id": "",
        "address": "auto",
        "keep_charging": False,
        "ram_endpoint": "",
        "template": type(config.template)(),
    }
    return _shared_ecs(config.model_copy(update=own))


@cache
def _shared_ecs(config: AliyunConfig) -> Ecs:
    return Ecs(config)
