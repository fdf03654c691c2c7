"""Give an ECS instance the RAM role with which its node stops itself.

It creates a role and a policy, attaches the policy to the role and the role to the instance. What
exists stays; a policy of ours with another text is corrected. Each step looks first, so that a run
that was cut off is completed by the next.

Each instance gets a role of its own: RAM has no condition that names the calling instance, so
instances that share a role could stop each other. An instance has one role at most; if it has one,
that role gets the policy.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from qwenctl.clouds.aliyun.api import Credentials, Ecs, arn_of
from qwenctl.clouds.aliyun.errors import error_of
from qwenctl.clouds.aliyun.permissions import node_policy, node_trust
from qwenctl.clouds.base import ProviderError, Throttled, Transient
from qwenctl.clouds.permissions import Instance, node_role_name
from qwenctl.clouds.plan import Change, compact

if TYPE_CHECKING:
    from qwenctl.clouds.aliyun.settings import AliyunConfig

SETTLE_SECONDS = 30.0
"""How long a new resource may be unknown elsewhere in the cloud, or calls may be throttled."""

FIRST_PAUSE_SECONDS = 1.0
"""The pause before a call is repeated; doubled each time, up to 8."""

_UNSETTLED = frozenset({"EntityNotExist.Role", "EntityNotExist.Policy", "InvalidRamRole.NotFound"})

T = TypeVar("T")


class Ram(Ecs):
    """The RAM API, one for all regions, with the errors and the time limits of `Ecs`."""

    api = "RAM"

    def __init__(self, config: AliyunConfig, credentials: Credentials | None = None) -> None:
        """Raise ModuleNotFoundError if the SDK is not installed."""
        super().__init__(config, credentials)
        self.host = config.ram_endpoint or "ram.aliyuncs.com"
        if not config.ram_endpoint:
            self.protocol = "https"  # "http" is for an endpoint on this machine

    def _request(self, action: str, parameters: Mapping[str, object]) -> Any:
        from aliyunsdkcore.request import RpcRequest

        request = RpcRequest("Ram", "2015-05-01", action)
        request.set_method("POST")
        for key, value in parameters.items():
            request.add_query_param(key, value)
        return request


def apply_role(
    ecs: Ecs, ram: Ram, instance: Instance, *, dry_run: bool = False
) -> Iterator[Change]:
    """Create and attach the role, and yield each change once it is done.

    Args:
        ecs: the instance's region.
        ram: the RAM API of the same account.
        instance: the ECS instance.
        dry_run: change nothing.

    Raises:
        ProviderError: the cloud refuses. The changes yielded before are done.
    """
    id_, own = instance.instance_id, node_role_name(instance)
    given = _patiently(lambda: ecs.role(id_))
    if given and given != own:
        yield Change(
            f"{id_} has the role {given} already, so that role gets the policy: whatever else has "
            f"the role may then stop {id_}",
            "note",
        )
    else:  # the instance keeps the name of a deleted role
        yield from _role(ram, own, node_trust(instance.region), dry_run)
    yield _policy(ram, own, node_policy([instance]), dry_run)
    yield _policy_in_role(ram, own, given or own, dry_run)
    what = f"RAM role {given or own} to {id_}"
    if given:
        yield Change(what, "already there")
        return
    if not dry_run:
        _patiently(lambda: _give(ecs, id_, own), unsettled=True)
    yield Change.by("attach", what, dry_run=dry_run)


def _role(ram: Ram, name: str, trust: Any, dry_run: bool) -> Iterator[Change]:
    what = f"RAM role {name}"
    found = _found(
        "EntityNotExist.Role", lambda: _ram(ram, "GetRole", f"role/{name}", RoleName=name)
    )
    if found is None:
        if not dry_run:
            _unless(
                "EntityAlreadyExists.Role",  # another call was faster
                lambda: _ram(
                    ram,
                    "CreateRole",
                    f"role/{name}",
                    RoleName=name,
                    AssumeRolePolicyDocument=compact(trust),
                    Description="Lets a node that qwenctl started stop itself",
                ),
            )
        yield Change.by("make", what, dry_run=dry_run)
        return
    yield Change(what, "already there")
    if not _says((found.get("Role") or {}).get("AssumeRolePolicyDocument"), trust):
        yield Change(
            f"{what} has another trust policy than the one that `qwenctl provision` prints: "
            "see who may take it",
            "note",
        )


def _policy(ram: Ram, name: str, document: Any, dry_run: bool) -> Change:
    what, resource = f"RAM policy {name}", f"policy/{name}"
    found = _found(
        "EntityNotExist.Policy",
        lambda: _ram(ram, "GetPolicy", resource, PolicyName=name, PolicyType="Custom"),
    )
    if found is None:
        if not dry_run:
            _unless(
                "EntityAlreadyExists.Policy",
                lambda: _ram(
                    ram,
                    "CreatePolicy",
                    resource,
                    PolicyName=name,
                    PolicyDocument=compact(document),
                    Description="To stop one instance, nothing else",
                ),
            )
        return Change.by("make", what, dry_run=dry_run)
    if _says((found.get("DefaultPolicyVersion") or {}).get("PolicyDocument"), document):
        return Change(what, "already there")
    if not dry_run:
        _patiently(
            lambda: _ram(
                ram,
                "CreatePolicyVersion",
                resource,
                PolicyName=name,
                PolicyDocument=compact(document),
                SetAsDefault="true",
                # A policy has five versions at most.
                RotateStrategy="DeleteOldestNonDefaultVersionWhenLimitExceeded",
            )
        )
    return Change.by("change", what, dry_run=dry_run)


def _policy_in_role(ram: Ram, policy: str, role: str, dry_run: bool) -> Change:
    what, resource = f"RAM policy {policy} to RAM role {role}", f"role/{role}"
    found = _found(
        "EntityNotExist.Role",  # not yet known everywhere; or a dry run, and not made
        lambda: _ram(ram, "ListPoliciesForRole", resource, RoleName=role),
    )
    there = ((found or {}).get("Policies") or {}).get("Policy") or ()
    if any((one.get("PolicyName"), one.get("PolicyType")) == (policy, "Custom") for one in there):
        return Change(what, "already there")
    if not dry_run:
        _unless(
            "EntityAlreadyExists.Role.Policy",
            lambda: _ram(
                ram,
                "AttachPolicyToRole",
                resource,
                PolicyType="Custom",
                PolicyName=policy,
                RoleName=role,
            ),
            unsettled=True,
        )
    return Change.by("attach", what, dry_run=dry_run)


def _give(ecs: Ecs, instance_id: str, role: str) -> None:
    resource = arn_of(ecs.region, instance_id)
    action = "AttachInstanceRamRole"
    ids = json.dumps([instance_id])
    answer = ecs.call(action, resource, RamRoleName=role, InstanceIds=ids)
    # The call is for many instances: it succeeds, with a result for each instance.
    results = (answer.get(f"{action}Results") or {}).get(f"{action}Result") or ()
    one = next((one for one in results if one.get("InstanceId") == instance_id), None)
    if one is None:
        raise Transient(f"the answer to {action} does not say whether {instance_id} has the role")
    if str(one.get("Code")) != "200":
        raise error_of(
            str(one.get("Code")),
            message=str(one.get("Message")),
            status=400,
            request_id=str(answer.get("RequestId", "")),
            action=action,
            region=ecs.region,
            resource=resource,
        )


def _ram(ram: Ram, action: str, resource: str, **parameters: object) -> dict[str, Any]:
    return ram.call(action, f"acs:ram:*:*:{resource}", **parameters)


def _found(absent: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return the answer of a look; None if it is refused with that code."""
    try:
        return _patiently(look)
    except ProviderError as error:
        if error.cloud_code == absent:
            return None
        raise


def _unless(done: str, call: Callable[[], object], *, unsettled: bool = False) -> None:
    """Make a call, whose refusal with that code counts as success."""
    try:
        _patiently(call, unsettled=unsettled)
    except ProviderError as error:
        if error.cloud_code != done:
            raise


def _patiently(call: Callable[[], T], *, unsettled: bool = False) -> T:
    """Return the answer to a call that is repeated while it is throttled.

    Args:
        call: a call that has no effect when it is refused.
        unsettled: repeat it, too, while a new resource is unknown.
    """
    deadline, pause = time.monotonic() + SETTLE_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except ProviderError as error:
            later = unsettled and error.cloud_code in _UNSETTLED
            wait = pause * random.uniform(0.8, 1.2)
            if not (later or isinstance(error, Throttled)) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        pause = min(2 * pause, 8.0)


def _says(text: object, document: Any) -> bool:
    """Whether a policy document from the cloud equals the document."""
    try:
        return bool(json.loads(str(text)) == document)
    except ValueError:
        return False
