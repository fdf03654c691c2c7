"""Add rules to an EC2 security group, and set the shutdown behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.base import ProviderError
from qwenctl.clouds.plan import Change, Plan, Rule
from qwenctl.clouds.security import Permit, add_rules, group_of, instance_of, notes_of


def apply_rules(
    account: Account, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """Add the plan's rules, set the shutdown behaviour to `stop`, yield each change.

    Raises:
        ConfigError: the group is ambiguous, or the plan has no rule.
        ProviderError: the cloud refuses. The changes yielded before are done.
    """
    instance = instance_of(plan)
    id_ = instance.instance_id
    raw = account.instance(id_)
    group = group_of([one["GroupId"] for one in raw.get("SecurityGroups") or ()], raw, plan, group)
    answer = account.ask("describe_security_groups", id_, GroupIds=[group])
    there = list(_aws_permits(answer["SecurityGroups"][0].get("IpPermissions") or ()))

    def add(rule: Rule) -> None:
        try:
            account.ask(
                "authorize_security_group_ingress",
                id_,
                GroupId=group,
                IpPermissions=[_aws_rule(rule)],
            )
        except ProviderError as error:
            if error.cloud_code != "InvalidPermission.Duplicate":  # another call was faster
                raise

    yield from add_rules(plan, group, there, add, dry_run=dry_run)
    yield _stop_on_shutdown(account, id_, dry_run)
    yield from notes_of(plan, group, there)


def _stop_on_shutdown(account: Account, instance_id: str, dry_run: bool) -> Change:
    what = "InstanceInitiatedShutdownBehavior = stop"
    if account.shutdown_behavior(instance_id) == "stop":
        return Change(what, "already there")
    if dry_run:
        return Change.by("change", what, dry_run=True)
    account.ask(
        "modify_instance_attribute",
        instance_id,
        InstanceId=instance_id,
        Attribute="instanceInitiatedShutdownBehavior",
        Value="stop",
    )
    if (behavior := account.shutdown_behavior(instance_id)) != "stop":
        return Change(f"a shutdown from inside would still {behavior} the instance", "note")
    return Change.by("change", what, dry_run=False)


def _aws_permits(permissions: Iterable[Any]) -> Iterable[Permit]:
    for one in permissions:
        if one.get("IpProtocol") not in ("tcp", "6", "-1"):
            continue
        low, high = one.get("FromPort", 0), one.get("ToPort", 65535)
        sources = [
            *(source["CidrIp"] for source in one.get("IpRanges") or ()),
            *(source["CidrIpv6"] for source in one.get("Ipv6Ranges") or ()),
            *(source.get("GroupId", "") for source in one.get("UserIdGroupPairs") or ()),
        ]
        for source in sources:
            yield Permit(source, low, high)


def _aws_rule(rule: Rule) -> dict[str, Any]:
    key, id_ = "IpRanges", "CidrIp"
    if rule.is_group:
        key, id_ = "UserIdGroupPairs", "GroupId"
    elif ":" in rule.source:
        key, id_ = "Ipv6Ranges", "CidrIpv6"
    source = {id_: rule.source, "Description": rule.description}
    return {"IpProtocol": "tcp", "FromPort": rule.port, "ToPort": rule.port, key: [source]}
