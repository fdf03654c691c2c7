"""Checks of the doctor for a GPU on AWS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from qwenctl.clouds.aws.api import Account, Verb, observation
from qwenctl.clouds.aws.provider import make
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import Context, Observation, ProviderError
from qwenctl.clouds.check_steps import (
    clock_with_cloud,
    explain_settings,
    ok_configured_address,
    unproved,
)
from qwenctl.core.phase import Observed
from qwenctl.lib.findings import Check, Finding, Stop, fail, ok, refusal, warn

_OWN_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")

_NO_INSTANCE = "i-00000000000000000"

POLICY = "Attach what `qwenctl permissions aws` prints to the IAM user or role that the proxy uses."


def checks(settings: AwsConfig, context: Context) -> tuple[list[Check], Callable[[], Observation]]:
    """Return the checks, each of which needs those before it, and the observation."""
    steps = _Checks(settings, context)
    found: list[Check] = [
        steps.table,
        steps.credentials,
        steps.endpoint,
        steps.instance,
        lambda: steps.permission("start"),
        lambda: steps.permission("stop"),
        steps.shutdown,
        steps.billing,
        steps.spot,
        steps.address,
    ]
    return found, steps.observation


class _Checks:
    def __init__(self, settings: AwsConfig, context: Context) -> None:
        self._config = settings
        self._context = context
        self._name = context.gpu
        self._account: Account
        self._raw: dict[str, Any] = {}

    def table(self) -> Iterable[Finding]:
        with explain_settings("aws"):
            provider = make(self._config, self._context)
            self._account = provider.account
        return [ok("provider", f"AWS, {self._config.region or 'region by boto3'}")]

    def credentials(self) -> Iterable[Finding]:
        try:
            source = _source(self._account)
        except ProviderError as error:
            raise Stop(refusal("credentials", error)) from None
        if not source:
            raise Stop(
                fail(
                    "credentials",
                    "none found",
                    "Give the machine that the proxy runs on an instance profile, or set "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in aws.profile.",
                )
            )
        return [ok("credentials", f"from {source}")]

    def endpoint(self) -> Iterable[Finding]:
        return clock_with_cloud(
            self._account.call("", lambda client: str(client.meta.endpoint_url))
        )

    def instance(self) -> Iterable[Finding]:
        try:
            self._raw = self._account.instance(self._config.instance_id)
        except ProviderError as error:
            raise Stop(_refused("instance", error)) from None
        seen = self.observation()
        if seen.state is Observed.ABSENT:
            raise Stop(
                fail(
                    "instance",
                    seen.reason.partition("; ")[0],
                    f"Check instance_id and region in [gpu.{self._name}.aws], and that the "
                    "credentials are of that account.",
                )
            )
        yield ok("instance", f"{self._raw.get('InstanceType', '?')}, {seen.state.value}")

    def permission(self, verb: Verb) -> Iterable[Finding]:
        try:
            self._account.dry_run(verb, self._config.instance_id)
        except ProviderError as error:
            yield _refused(f"may {verb}", error)
            return
        if self._allows_all:
            yield unproved(verb, self._host)
        else:
            yield ok(f"may {verb}", f"ec2:{verb.capitalize()}Instances is allowed")

    @property
    def _host(self) -> str:
        url = self._account.call("", lambda client: str(client.meta.endpoint_url))
        return urlsplit(url).netloc

    @cached_property
    def _allows_all(self) -> bool:
        """Whether it is another program than EC2 and allows every dry run, as moto does."""
        if self._host.partition(":")[0].endswith(_OWN_HOSTS):
            return False
        try:
            self._account.dry_run("start", _NO_INSTANCE)
        except ProviderError:
            return False
        return True

    def shutdown(self) -> Iterable[Finding]:
        """Check that a node that powers itself off is stopped and not terminated."""
        try:
            behavior = self._account.shutdown_behavior(self._config.instance_id)
        except ProviderError as error:
            yield _refused("shutdown", error)
            return
        if behavior == "stop":
            yield ok("shutdown", "a shutdown from inside stops the instance and its billing")
        else:
            yield fail(
                "shutdown",
                f"a shutdown from inside would {behavior} the instance, disk included",
                "Run `qwenctl provision --apply`, or `aws ec2 modify-instance-attribute "
                f"--instance-id {self._config.instance_id} "
                "--instance-initiated-shutdown-behavior stop`.",
            )

    def billing(self) -> Iterable[Finding]:
        raw = self._raw
        if raw.get("RootDeviceType") == "instance-store":
            yield fail(
                "billing",
                "its root volume is an instance store: it cannot be stopped",
                "Make an instance from an image with an EBS root volume.",
            )
        elif raw.get("InstanceLifecycle") == "capacity-block":
            yield warn(
                "billing",
                "it is in a Capacity Block, paid for in advance",
                "Stopping it saves nothing; use an on-demand or spot instance instead.",
            )
        elif (raw.get("Placement") or {}).get("Tenancy") == "host":
            yield warn(
                "billing",
                "it is on a Dedicated Host, which is billed while it is allocated",
                "Stopping the instance saves nothing; use shared tenancy, or release the host.",
            )
        elif raw.get("CapacityReservationId"):
            yield warn(
                "billing",
                "it uses a capacity reservation, which is billed whether it runs or not",
                "That keeps a machine for it. To save money, cancel the reservation.",
            )
        else:
            yield ok("billing", "a stop ends it, disks and Elastic IP aside")

    def spot(self) -> Iterable[Finding]:
        request_id = self._raw.get("SpotInstanceRequestId")
        if not request_id:
            return
        try:
            answer = self._account.ask(
                "describe_spot_instance_requests",
                self._config.instance_id,
                SpotInstanceRequestIds=[request_id],
            )
        except ProviderError as error:
            yield _refused("spot", error)
            return
        request: dict[str, Any] = next(iter(answer.get("SpotInstanceRequests") or ()), {})
        kind = request.get("Type", "one-time")
        behavior = request.get("InstanceInterruptionBehavior", "terminate")
        if (kind, behavior) == ("persistent", "stop"):
            yield ok("spot", "persistent request, stopped when interrupted: it can start again")
        else:
            yield fail(
                "spot",
                f"a {kind} spot request, {behavior} when interrupted: it cannot be stopped and "
                "started",
                "Make the instance with a persistent spot request and interruption behaviour stop, "
                "or use an on-demand one.",
            )

    def address(self) -> Iterable[Finding]:
        if self._context.address:
            yield ok_configured_address(self._context)
            return
        private = self._raw.get("PrivateIpAddress")
        public = self._raw.get("PublicIpAddress")
        choice = self._config.address
        if private and choice != "public":
            yield ok("address", str(private))
        elif choice == "private" or not (
            public or self.observation().state is not Observed.RUNNING
        ):
            yield fail(
                "address",
                f"the instance has no {choice if choice != 'auto' else 'IP'} address",
                "Put it into a VPC with the proxy, or give it an Elastic IP and set "
                'aws.address = "public".',
            )
        elif _elastic(self._raw):
            yield ok("address", f"{public} (Elastic IP)")
        else:
            yield warn(
                "address",
                f"{public or 'a public one'}, which changes with each start",
                "Use the private address from within the VPC, or an Elastic IP.",
            )

    def observation(self) -> Observation:
        return observation(self._config.instance_id, self._raw or None, self._config.address)


def _elastic(raw: dict[str, Any]) -> bool:
    """Whether the public address is an Elastic IP: Amazon owns the others."""
    owners = [
        (interface.get("Association") or {}).get("IpOwnerId", "amazon")
        for interface in raw.get("NetworkInterfaces") or ()
    ]
    return any(owner != "amazon" for owner in owners)


def _refused(check: str, error: ProviderError) -> Finding:
    denied = error.cloud_code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")
    return refusal(check, error, POLICY if denied else "")


_SOURCES = {
    "env": "environment variables",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role that the profile assumes",
    "assume-role-with-web-identity": "the web identity token of this pod",
    "sso": "`aws sso login`",
    "login": "`aws login`",
    "custom-process": "the program that the profile names",
    "container-role": "the role of this container",
    "iam-role": "the instance profile of this machine",
}


def _source(account: Account) -> str:
    """Return the source of the credentials, for people; empty if there are none.

    Raises:
        ProviderError: they cannot be fetched.
    """

    def ask(client: Any) -> str:
        # boto3 has no public way to get this of a client.
        found = client._request_signer._credentials
        method = str(found.method) if found is not None else ""
        return _SOURCES.get(method, method)

    return account.call("", ask)
