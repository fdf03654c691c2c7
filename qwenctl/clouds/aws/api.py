"""The EC2 API, through boto3.

EC2 makes `start` and `stop` idempotent: a call whose state is already reached succeeds without
effect, also for two callers at once. So nothing is read first, which could be out of date. boto3's
waiters are not used: the controller observes.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from qwenctl.clouds.aws.errors import not_ec2, quote, translate
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import (
    Denied,
    NoCapacity,
    Observation,
    Transient,
    expect_dry_run,
    usable_address,
)
from qwenctl.clouds.batch import MAX_IDS, Batch
from qwenctl.clouds.deadline import run_by, with_deadline
from qwenctl.core.claims import TAG
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import is_loopback

Verb = Literal["start", "stop"]
T = TypeVar("T")

SETUP_SECONDS = 5.0
"""The time of a call before its request: building the client, fetching credentials, retries."""


class Account:
    """EC2 in one region with one set of credentials. Threads may share it.

    boto3's client takes a quarter of a second and some 30 MB to build: it is built at the first
    call, and all instances of an account share it (`account_of`).

    Every call lasts at most `call_timeout` seconds, whatever hangs (`run_by`). A request without
    enough time left is not sent, so that none follows a call that the controller counts as over.

    Each call raises a `ProviderError` subclass.
    """

    def __init__(self, settings: AwsConfig) -> None:
        self._settings = settings
        self._request_seconds = settings.connect_timeout + settings.read_timeout
        self.call_timeout: float = SETUP_SECONDS + self._request_seconds
        self._building = threading.Lock()
        self._built: Any = None
        self._call = threading.local()
        self.looks = Batch(self.describe)
        """Shared descriptions: ``looks.get(instance_id)``."""

    def describe(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Describe the instances, by id; unknown ids are missing.

        It makes one request for each hundred, within `call_timeout` each, and repeats quick
        failures only.
        """
        found: dict[str, dict[str, Any]] = {}
        for first in range(0, len(ids), MAX_IDS):
            part = list(ids[first : first + MAX_IDS])
            found.update(self._bounded(part[0], partial(self._describe, part)))
        return found

    def start(self, instance_id: str) -> str:
        """Start the instance and return the request id.

        Raises:
            NoCapacity: no such machine is free, or EC2 has reclaimed the spot instance.
            Conflict: it is being stopped.
        """
        return self._bounded(instance_id, lambda: self._start(instance_id))

    def stop(self, instance_id: str) -> str:
        """Stop the instance and return the request id.

        Raises:
            Conflict: EC2 does not stop an instance in this state, such as `pending`.
        """
        return self._bounded(instance_id, lambda: self._change("stop", instance_id))

    def dry_run(self, verb: Verb, instance_id: str) -> None:
        """Ask EC2 whether the call would be allowed; return if so.

        Raises:
            Denied: it would not be allowed.
        """
        change = partial(self._change, verb, instance_id, DryRun=True)
        expect_dry_run(lambda: self._bounded(instance_id, change))

    def shutdown_behavior(self, instance_id: str) -> str:
        """Return ``stop`` or ``terminate``, the effect of an OS shutdown on the instance.

        Only with ``stop`` does the agent's dead-man's switch keep the disk.
        """

        answer = self.ask(
            "describe_instance_attribute",
            instance_id,
            InstanceId=instance_id,
            Attribute="instanceInitiatedShutdownBehavior",
        )
        return str(_expect(answer, "InstanceInitiatedShutdownBehavior").get("Value", ""))

    def call(self, instance_id: str, work: Callable[[Any], T]) -> T:
        """Return ``work(client)`` with boto3's client, bounded and with translated errors.

        Args:
            instance_id: its instance, for the sentence of a refusal.
            work: makes one request, which is not repeated.
        """
        return self._bounded(instance_id, lambda: work(self._client()))

    def ask(self, operation: str, instance_id: str, **parameters: Any) -> Any:
        """Make one call and return its answer.

        Args:
            operation: boto3's name, such as ``describe_security_groups``.
            instance_id: its instance, for the sentence of a refusal.
            parameters: boto3's.
        """
        return self.call(instance_id, lambda client: getattr(client, operation)(**parameters))

    def instance(self, instance_id: str) -> dict[str, Any]:
        """Return the raw DescribeInstances entry; empty if the instance does not exist."""
        return self.describe([instance_id]).get(instance_id, {})

    def _describe(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        # By filter: with InstanceIds one unknown id makes the whole call fail, says
        # https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html.
        pages = self._client().get_paginator("describe_instances")
        attempt = 0
        while True:
            try:
                answers = pages.paginate(Filters=[{"Name": "instance-id", "Values": ids}])
                return _instances(answers, ids)
            except Exception as error:
                problem = translate(error, instance=ids[0], region=self._region())
                # Describe actions have no permissions on single resources:
                # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/iam-policy-structure.html.
                problem.about_account |= isinstance(problem, Denied)
                attempt += 1
                pause = random.uniform(0.2, 0.4) * 2**attempt
                if not isinstance(problem, Transient) or not self._time_for_request(pause):
                    raise problem from None
                time.sleep(pause)

    def _start(self, instance_id: str) -> str:
        try:
            return self._change("start", instance_id)
        except Exception as error:
            refused = translate(error, instance=instance_id, region=self._region())
            if refused.cloud_code != "IncorrectSpotRequestState":
                raise refused from None
        # EC2 answers the same shortly after a stop, when a later start succeeds.
        instance = self._describe([instance_id]).get(instance_id, {})
        if _code(instance) != "Server.SpotInstanceShutdown":
            raise refused
        raise NoCapacity(
            "EC2 has taken the spot instance back and starts it by itself when there is capacity "
            "again; use an on-demand instance where that is too long",
            cloud_code=refused.cloud_code,
            request_id=refused.request_id,
        )

    def _change(self, verb: Verb, instance_id: str, **more: Any) -> str:
        answer = getattr(self._client(), f"{verb}_instances")(InstanceIds=[instance_id], **more)
        changed = _expect(answer, "StartingInstances" if verb == "start" else "StoppingInstances")
        if instance_id not in (one.get("InstanceId") for one in changed):
            raise not_ec2()
        return str(answer.get("ResponseMetadata", {}).get("RequestId", ""))

    def _client(self) -> Any:
        with self._building:
            if self._built is None:
                self._built = self._build()
            return self._built

    def _build(self) -> Any:
        import boto3
        from botocore.config import Config as BotoConfig

        settings = self._settings
        session = boto3.session.Session(
            region_name=settings.region or None, profile_name=settings.profile or None
        )
        client = session.client(
            "ec2",
            endpoint_url=settings.endpoint_url or None,
            config=BotoConfig(
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
                # A start must not be sent twice, and two layers of retries multiply.
                retries={"mode": "standard", "total_max_attempts": 1},
                user_agent_extra="qwenctl",
            ),
        )
        client.meta.events.register("before-send.ec2", self._before_send)
        # boto3 has no public way to check the clock once the connection stands.
        pools = client._endpoint.http_session._pool_classes_by_scheme
        for scheme, pool in pools.items():
            own = with_deadline(pool.ConnectionCls, self._before_bytes)
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": own})
        return client

    def _region(self) -> str:
        if self._settings.region or self._built is None:
            return self._settings.region
        return str(self._built.meta.region_name)

    def _bounded(self, instance_id: str, work: Callable[[], T]) -> T:
        """Return ``work()``, run in a thread for at most `call_timeout`."""
        deadline = time.monotonic() + self.call_timeout

        def run() -> T:
            self._call.deadline = deadline
            return work()

        late = Transient(
            f"EC2 has not answered within {self.call_timeout:.0f} s; the call may have been accepted"
        )
        try:
            return run_by(deadline, run, late)
        except Exception as error:
            raise translate(error, instance=instance_id, region=self._region()) from None

    def _time_for_request(self, pause: float = 0.0) -> bool:
        return self._time_for(pause + self._request_seconds)

    def _time_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds <= float(self._call.deadline)

    def _before_send(self, **_: object) -> None:
        if not self._time_for_request():
            raise _not_sent()

    def _before_bytes(self) -> None:
        """Check the clock on the connection: its name lookup has no time limit."""
        if not self._time_for(self._settings.read_timeout):
            raise _not_sent()


def _not_sent() -> Transient:
    return Transient(
        "the call to EC2 was not sent: name lookup, credentials or this machine were too slow"
    )


def _expect(answer: Mapping[str, Any], key: str) -> Any:
    """Return a part of EC2's answer, which has a request id.

    boto3 takes any XML for an answer: a captive portal's page must not mean that the instance is
    gone, or was started.
    """
    if key not in answer or not answer.get("ResponseMetadata", {}).get("RequestId"):
        raise not_ec2()
    return answer[key]


def _instances(answers: Iterable[Mapping[str, Any]], ids: Sequence[str]) -> dict[str, Any]:
    """Return the entries of DescribeInstances, by id.

    An answer with anything but these instances proves the absence of none. One that shows an
    instance in two states says nothing about it.
    """
    found: dict[str, Any] = {}
    for answer in answers:
        for reservation in _expect(answer, "Reservations"):
            if not reservation.get("Instances"):
                raise not_ec2()
            for instance in reservation["Instances"]:
                id_ = instance.get("InstanceId")
                if id_ not in ids:
                    raise not_ec2()
                other, state = found.setdefault(id_, instance), _state(instance)
                if _state(other) != state:
                    both = f"{_state(other)} and {state}"
                    found[id_] = {"InstanceId": id_, "State": {"Name": both}}
    return found


def _state(instance: Mapping[str, Any]) -> str:
    return str(instance.get("State", {}).get("Name", ""))


def account_of(settings: AwsConfig, table: str = "aws") -> Account:
    """Return the account of an instance, shared by all with the same settings.

    Args:
        settings: the instance's.
        table: the name of the settings in errors.

    Raises:
        ConfigError: the endpoint is no URL, or requests would travel unprotected.
    """
    _check_endpoint(settings.endpoint_url, f"{table}.endpoint_url")
    own = {"instance_id": "", "address": "auto", "template": type(settings.template)()}
    return _shared_account(settings.model_copy(update=own))


def _check_endpoint(url: str, key: str) -> None:
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    if not url:
        return
    try:
        parts = urlsplit(url)
        good = parts.port != 0 and (is_valid_endpoint_url(url) or is_valid_ipv6_endpoint_url(url))
    except ValueError:  # from urlsplit
        good = False
    if not good:
        # It is not shown, as it may hold a password.
        raise ConfigError(f"{key}: that is no URL of a host; give one such as https://HOST:PORT")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            f'{key}: "http" is only for an endpoint on this machine; VPC endpoints speak https too'
        )


@cache
def _shared_account(settings: AwsConfig) -> Account:
    return Account(settings)


_STATES = {
    "pending": Observed.STARTING,
    "running": Observed.RUNNING,
    "stopping": Observed.STOPPING,
    "stopped": Observed.STOPPED,
    "shutting-down": Observed.ABSENT,
    "terminated": Observed.ABSENT,
}

_REASONS = {
    "Client.InstanceInitiatedShutdown": "its own operating system shut it down",
    "Client.InstanceTerminated": "it was terminated or rebooted while an image was made of it",
    "Client.InternalError": "EC2 could not start it; often a disk is encrypted with a KMS key that "
    "these credentials or EC2 may not use",
    "Client.InvalidSnapshot.NotFound": "a snapshot that it needs is gone",
    "Client.UserInitiatedHibernate": "somebody had it hibernate",
    "Client.UserInitiatedShutdown": "it was stopped by a call of the EC2 API",
    "Client.VolumeLimitExceeded": "the account's quota of EBS volumes is used up; ask for more in "
    "Service Quotas",
    "Server.InsufficientInstanceCapacity": "EC2 had no such machine free; if it lasts, use another "
    "zone or instance type",
    "Server.InternalError": "EC2 had a fault of its own when it started it",
    "Server.ScheduledStop": "EC2 retired the hardware under it; a start moves it elsewhere",
    "Server.SpotInstanceShutdown": "EC2 took the spot instance back, for capacity or price",
    "Server.SpotInstanceTermination": "EC2 took the spot instance back, for capacity or price",
}
"""EC2's `StateReason` codes in plain words:
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html."""


def observation(
    instance_id: str,
    instance: Mapping[str, Any] | None,
    address: Literal["auto", "private", "public"] = "auto",
) -> Observation:
    """Return the observation of an entry of `Account.describe`, or of None."""
    if instance is None:
        return Observation(
            Observed.ABSENT,
            instance_id,
            reason=f"EC2 knows no instance {instance_id} in this region and account; check "
            "aws.instance_id and aws.region",
        )
    name = _state(instance)
    state = _STATES.get(name, Observed.UNKNOWN)
    reason = f"EC2 calls its state {quote(name)!r}" if state is Observed.UNKNOWN else ""
    if state in (Observed.STOPPED, Observed.STOPPING, Observed.ABSENT):
        reason = _reason(instance)
    if state is Observed.ABSENT:
        reason = f"the instance has been terminated and cannot come back{reason and f': {reason}'}"
    where = _choose(instance, address) if state is Observed.RUNNING else ""
    # The private IP is kept until the instance is terminated:
    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-instance-addressing.html.
    kept, private = _choose(instance, address), instance.get("PrivateIpAddress")
    tags = instance.get("Tags") or ()
    return Observation(
        state,
        instance_id,
        where,
        reason,
        claim=next((str(tag.get("Value")) for tag in tags if tag.get("Key") == TAG), ""),
        kept_address=kept if kept == private else "",
    )


def _choose(instance: Mapping[str, Any], address: str) -> str:
    private = usable_address(instance.get("PrivateIpAddress"))
    public = usable_address(instance.get("PublicIpAddress"))
    return {"private": private, "public": public}.get(address, private or public)


def _code(instance: Mapping[str, Any]) -> str:
    return str(instance.get("StateReason", {}).get("Code", ""))


def _reason(instance: Mapping[str, Any]) -> str:
    """Return the reason why the instance is off, with EC2's code and time."""
    code = _code(instance)
    words = _REASONS.get(code) or quote(str(instance.get("StateReason", {}).get("Message", "")))
    when = re.search(r"\(([^()]+)\)", str(instance.get("StateTransitionReason", "")))
    notes = ", ".join(part for part in (when.group(1) if when else "", code) if part)
    return f"{words} ({notes})" if words and notes else words
