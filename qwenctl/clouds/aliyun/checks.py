"""Checks of the doctor for a GPU on Alibaba Cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from qwenctl.clouds.aliyun.api import Credentials, Ecs, Instance, arn_of, default_credentials
from qwenctl.clouds.aliyun.provider import make
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import (
    DRY_RUN_PASSED,
    Conflict,
    Context,
    NoCapacity,
    Observation,
    ProviderError,
)
from qwenctl.clouds.check_steps import (
    clock_with_cloud,
    explain_settings,
    ok_configured_address,
    unproved,
)
from qwenctl.core.phase import Observed
from qwenctl.lib.findings import Check, Finding, Level, Stop, fail, ok, refusal, warn

_NO_INSTANCE = "i-00000000000000000000"

POLICY = (
    "Attach what `qwenctl permissions aliyun` prints to the RAM user or role that the proxy uses."
)


def checks(
    settings: AliyunConfig, context: Context
) -> tuple[list[Check], Callable[[], Observation]]:
    """Return the checks, each of which needs those before it, and the observation."""
    steps = _Checks(settings, context)
    found: list[Check] = [
        steps.table,
        steps.endpoint,
        steps.credentials,
        steps.instance,
        lambda: steps.permission("start", "StartInstance"),
        lambda: steps.permission("stop", "StopInstance", StoppedMode="StopCharging"),
        *([steps.role] if context.agent else []),  # the agent stops the instance with it
        steps.billing,
        steps.spot,
        steps.address,
    ]
    return found, steps.observation


class _Checks:
    def __init__(self, settings: AliyunConfig, context: Context) -> None:
        self._config = settings
        self._context = context
        self._name = context.gpu
        self._ecs: Ecs
        self._credentials: Credentials
        self._raw: dict[str, Any] = {}
        self._seen: Instance

    def table(self) -> Iterable[Finding]:
        with explain_settings("aliyun"):
            make(self._config, self._context)
            self._credentials = default_credentials()
            self._ecs = Ecs(self._config, self._credentials)
        return [ok("provider", f"Alibaba Cloud, {self._config.region}")]

    def endpoint(self) -> Iterable[Finding]:
        return clock_with_cloud(f"{self._config.protocol}://{self._ecs.host}/")

    def credentials(self) -> Iterable[Finding]:
        try:
            source = _source(self._credentials)
        except Exception:  # the SDK raises many kinds, whose texts may hold secrets
            raise Stop(
                fail(
                    "credentials",
                    "none found",
                    "Attach a RAM role to the ECS instance that the proxy runs on, or set "
                    "ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or run "
                    "`aliyun configure`.",
                )
            ) from None
        return [ok("credentials", f"from {source}")]

    def instance(self) -> Iterable[Finding]:
        try:
            self._raw = self._ecs.instance(self._config.instance_id)
        except ProviderError as error:
            raise Stop(_refused("instance", error)) from None
        if not self._raw:
            raise Stop(
                fail(
                    "instance",
                    f"there is no {self._config.instance_id} in {self._config.region}, or it may "
                    "not be seen",
                    f"Check instance_id and region in [gpu.{self._name}.aliyun]. {POLICY}",
                )
            )
        try:
            self._seen = Instance.from_api(self._raw)
        except (KeyError, TypeError, AttributeError):
            raise Stop(
                fail(
                    "instance",
                    "the answer to DescribeInstances is not one of the ECS API",
                    "See whether a web proxy answers in its place.",
                )
            ) from None
        yield ok("instance", f"{self._seen.type}, {self._seen.status.lower()}")
        reason = self._seen.observation(self._config.address).reason
        if self._seen.locks:
            yield fail("lock", reason, "Nothing can start it before that is settled.")

    def permission(self, verb: str, action: str, **parameters: object) -> Iterable[Finding]:
        """Check a right by a dry run, which checks rights before the instance's state."""
        # "true" as the API spells it: the SDK would write Python's True.
        id_ = self._config.instance_id
        resource = arn_of(self._config.region, id_)
        try:
            self._ecs.call(action, resource, InstanceId=id_, DryRun="true", **parameters)
        except Conflict:
            pass
        except NoCapacity as error:
            yield warn(
                f"may {verb}",
                f"yes; but a start would fail now: {error.args[0].partition(';')[0]}",
                "Wait, or use another instance type or zone; one stopped in economical mode has no "
                "machine kept for it.",
            )
            return
        except ProviderError as error:
            if error.cloud_code != DRY_RUN_PASSED:
                yield _refused(f"may {verb}", error)
                return
        if self._allows_all:
            yield unproved(verb, self._ecs.host)
        else:
            yield ok(f"may {verb}", f"ecs:{action} is allowed")

    @cached_property
    def _allows_all(self) -> bool:
        """Whether it is another program than ECS and allows every dry run."""
        if self._ecs.host.partition(":")[0].endswith(".aliyuncs.com"):
            return False
        resource = arn_of(self._config.region, _NO_INSTANCE)
        try:
            self._ecs.call("StartInstance", resource, InstanceId=_NO_INSTANCE, DryRun="true")
        except ProviderError as error:
            return error.cloud_code == DRY_RUN_PASSED
        return True

    def role(self) -> Iterable[Finding]:
        """Check the node's role, without which the dead-man's switch ends no billing."""
        try:
            name = self._ecs.role(self._config.instance_id)
        except ProviderError as error:
            yield replace(_refused("role", error), level=Level.WARN)
            return
        if name:
            yield ok("role", f"{name}; whether it may stop the instance cannot be seen from here")
            return
        yield warn(
            "role",
            "the instance has none: when its node hears no proxy any more, it cannot stop itself "
            "and goes on costing",
            "Run `qwenctl provision --apply` as an administrator.",
        )

    def billing(self) -> Iterable[Finding]:
        seen, config = self._seen, self._config
        if why := seen.keeps_charging:
            found = f"stopping it does not end billing: {why}"
            if config.keep_charging:
                yield warn("billing", found, "keep_charging = true says that this is meant.")
            else:
                yield fail(
                    "billing",
                    found,
                    "qwenctl does not start it. Use a pay-as-you-go instance in a VPC, of a family "
                    "without local disks, or set aliyun.keep_charging = true.",
                )
            return
        if seen.state is Observed.STOPPED and seen.stopped_mode not in ("", "StopCharging"):
            yield warn(
                "billing",
                "it is stopped and billed all the same (standard mode)",
                "Run `qwenctl up` and `qwenctl down`, or stop it in economical mode in the console.",
            )
            return
        kind = "pay-as-you-go" if seen.charge_type == "PostPaid" else seen.charge_type
        yield ok("billing", f"{kind}; a stop ends it (economical mode), disks and EIP aside")

    def spot(self) -> Iterable[Finding]:
        strategy = self._raw.get("SpotStrategy") or "NoSpot"
        if strategy == "NoSpot":
            return
        if self._raw.get("SpotInterruptionBehavior") == "Terminate":
            yield warn(
                "spot",
                "when it is reclaimed it is released, and its system disk with it",
                "Make the instance with SpotInterruptionBehavior=Stop, or keep models and data on a "
                "disk of their own.",
            )
            return
        limit = " with a price limit" if strategy == "SpotWithPriceLimit" else ""
        yield ok("spot", f"a spot instance{limit}: it may be reclaimed at any time")

    def address(self) -> Iterable[Finding]:
        if self._context.address:
            yield ok_configured_address(self._context)
            return
        choice, seen = self._config.address, self._seen
        address = seen.address(choice)
        if address and address == seen.public_ip:
            yield warn(
                "address",
                f"{address}, which changes with each start",
                "Use the private address from within the VPC, or an EIP: the security group can "
                "then name the proxy.",
            )
        elif address:
            yield ok("address", address)
        elif choice == "public" and seen.state is not Observed.RUNNING:
            yield ok("address", "a public one, which it gets when it starts")
        else:
            what = "IP" if choice == "auto" else choice
            yield fail(
                "address",
                f"the instance has no {what} address",
                'Bind an EIP to it, or set aliyun.address = "private" and run the proxy in its VPC.',
            )

    def observation(self) -> Observation:
        return self._seen.observation(self._config.address)


def _refused(check: str, error: ProviderError) -> Finding:
    denied = error.cloud_code.startswith(("Forbidden", "NoPermission"))
    return refusal(check, error, POLICY if denied else "")


_SOURCES = {
    "env": "environment variables",
    "static_ak": "environment variables",
    "oidc_role_arn": "the OIDC token of this pod",
    "cli_profile": "~/.aliyun/config.json",
    "profile": "~/.alibabacloud/credentials.ini",
    "ecs_ram_role": "the RAM role of this machine",
    "url": "ALIBABA_CLOUD_CREDENTIALS_URI",
}


def _source(credentials: Credentials) -> str:
    """Return the source of the credentials, for people.

    Raises:
        Exception: there are none; the SDK's own kinds, whose texts are not shown.
    """
    name = str(credentials.get_credentials().get_provider_name() or "")
    parts = [part for part in name.split("/") if part != "default"]
    return next((_SOURCES[p] for p in parts if p in _SOURCES), "/".join(parts))
