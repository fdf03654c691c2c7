"""Adds the rules of a `qwenctl.provision.Plan` to the instance's security group, if they are missing.

Nothing is ever taken away. What lets others reach the service's port is only reported: it may be
meant.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenctl.cloud_api import ec2_call, ec2_instance, ecs_call, ecs_instance
from qwenctl.errors import ConfigError
from qwenctl.providers.aliyun import Ecs
from qwenctl.providers.aws import Account
from qwenctl.providers.base import NotFound, ProviderError
from qwenctl.provision import Change, Instance, Plan, Rule

__all__ = ["apply_aliyun", "apply_aws"]


@dataclass(frozen=True)
class _Permit:
    """One inbound rule that the group has."""

    source: str
    low: int
    high: int

    def covers(self, rule: Rule) -> bool:
        if not self.low <= rule.port <= self.high:
            return False
        if self.source == rule.source:
            return True
        try:
            mine: Any = ipaddress.ip_network(self.source)
            wanted: Any = ipaddress.ip_network(rule.source)
        except ValueError:
            return False
        return bool(mine.version == wanted.version and wanted.subnet_of(mine))

    @property
    def anybody(self) -> bool:
        return self.source in ("0.0.0.0/0", "::/0")


def apply_aliyun(
    ecs: Ecs, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """The rules, in the instance's security group on Alibaba Cloud; yields each once it is there.

    Args:
        ecs: where and as whom.
        plan: what is needed.
        group: which group, if the instance has several.
        dry_run: look, and change nothing.

    Raises:
        ConfigError: it is not clear which group, or the plan has no rule.
        ProviderError: the cloud refuses. What was yielded before is done.
    """
    instance = _instance(plan)
    raw = ecs_instance(ecs, instance.instance_id)
    group = _group(
        (raw.get("SecurityGroupIds") or {}).get("SecurityGroupId") or (), raw, plan, group
    )
    resource = f"acs:ecs:{ecs.region}:*:securitygroup/{group}"
    answer = ecs_call(
        ecs,
        "DescribeSecurityGroupAttribute",
        resource,
        SecurityGroupId=group,
        Direction="ingress",
        MaxResults=1000,
    )
    there = list(_aliyun_permits((answer.get("Permissions") or {}).get("Permission") or ()))
    for rule in plan.rules:
        if not dry_run and not _covered(rule, there):
            v6 = ":" in rule.source
            source = (
                "SourceGroupId" if rule.is_group else "Ipv6SourceCidrIp" if v6 else "SourceCidrIp"
            )
            ecs_call(
                ecs,
                "AuthorizeSecurityGroup",
                resource,
                SecurityGroupId=group,
                IpProtocol="tcp",
                PortRange=f"{rule.port}/{rule.port}",
                NicType="intranet",
                Policy="accept",
                Description=rule.description,
                **{source: rule.source},
            )
        yield _change(rule, group, there, dry_run)
    yield from _notes(plan, group, there)


def apply_aws(
    account: Account, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """The rules, in the instance's security group on EC2, and `stop` as its shutdown behaviour;
    yields each once it is done.

    Raises:
        ConfigError: it is not clear which group, or the plan has no rule.
        ProviderError: the cloud refuses. What was yielded before is done.
    """
    instance = _instance(plan)
    id_ = instance.instance_id
    raw = ec2_instance(account, id_)
    group = _group([one["GroupId"] for one in raw.get("SecurityGroups") or ()], raw, plan, group)
    answer = ec2_call(account, "describe_security_groups", id_, GroupIds=[group])
    there = list(_aws_permits(answer["SecurityGroups"][0].get("IpPermissions") or ()))
    for rule in plan.rules:
        if not dry_run and not _covered(rule, there):
            try:
                ec2_call(
                    account,
                    "authorize_security_group_ingress",
                    id_,
                    GroupId=group,
                    IpPermissions=[_aws_rule(rule)],
                )
            except ProviderError as error:
                if error.cloud_code != "InvalidPermission.Duplicate":  # somebody was quicker
                    raise
        yield _change(rule, group, there, dry_run)
    yield _stop_on_shutdown(account, id_, dry_run)
    yield from _notes(plan, group, there)


def _stop_on_shutdown(account: Account, instance_id: str, dry_run: bool) -> Change:
    what = "InstanceInitiatedShutdownBehavior = stop"
    if account.shutdown_behavior(instance_id) == "stop":
        return Change(what, "already there")
    if dry_run:
        return Change.by("change", what, dry_run=True)
    ec2_call(
        account,
        "modify_instance_attribute",
        instance_id,
        InstanceId=instance_id,
        Attribute="instanceInitiatedShutdownBehavior",
        Value="stop",
    )
    if (behavior := account.shutdown_behavior(instance_id)) != "stop":
        return Change(f"a shutdown from inside would still {behavior} the instance", "note")
    return Change.by("change", what, dry_run=False)


def _instance(plan: Plan) -> Instance:
    if plan.instance is None:
        raise ConfigError(
            f"gpu.{plan.gpu}.{plan.cloud} names no instance: set region and instance_id"
        )
    if not plan.rules:
        raise ConfigError(
            "proxy.node_urls has no address in it: say where the proxy's requests come from with "
            "--from, such as --from 10.0.0.5/32"
        )
    return plan.instance


def _group(found: Sequence[str], raw: Any, plan: Plan, wanted: str) -> str:
    instance = _instance(plan)
    if not raw:
        raise NotFound(f"there is no instance {instance.instance_id} in {instance.region}")
    if wanted and wanted not in found:
        raise ConfigError(f"{wanted} is none of the instance's groups: {', '.join(found)}")
    if not wanted and len(found) != 1:
        raise ConfigError(
            f"the instance has {len(found)} security groups; say which one gets the rule with "
            f"--security-group: {', '.join(found) or 'none there'}"
        )
    return wanted or found[0]


def _aliyun_permits(permissions: Iterable[Any]) -> Iterable[_Permit]:
    for one in permissions:
        protocol = str(one.get("IpProtocol", "")).lower()
        if protocol not in ("tcp", "all") or str(one.get("Policy", "")).lower() != "accept":
            continue
        low, _, high = str(one.get("PortRange", "")).partition("/")
        try:
            ports = (int(low), int(high))
        except ValueError:
            continue
        source = (
            one.get("SourceCidrIp") or one.get("Ipv6SourceCidrIp") or one.get("SourceGroupId") or ""
        )
        yield _Permit(source, *((1, 65535) if ports == (-1, -1) else ports))


def _aws_permits(permissions: Iterable[Any]) -> Iterable[_Permit]:
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
            yield _Permit(source, low, high)


def _aws_rule(rule: Rule) -> dict[str, Any]:
    about: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": rule.port, "ToPort": rule.port}
    if rule.is_group:
        about["UserIdGroupPairs"] = [{"GroupId": rule.source, "Description": rule.description}]
    elif ":" in rule.source:
        about["Ipv6Ranges"] = [{"CidrIpv6": rule.source, "Description": rule.description}]
    else:
        about["IpRanges"] = [{"CidrIp": rule.source, "Description": rule.description}]
    return about


def _covered(rule: Rule, there: Iterable[_Permit]) -> bool:
    # One for anybody does not count: `_notes` says to remove it, and the proxy must not need it then.
    return any(permit.covers(rule) and not permit.anybody for permit in there)


def _change(rule: Rule, group: str, there: Iterable[_Permit], dry_run: bool) -> Change:
    what = f"{group}: allow tcp {rule.port} from {rule.source}"
    if _covered(rule, there):
        return Change(what, "already there")
    return Change.by("add", what, dry_run=dry_run)


def _notes(plan: Plan, group: str, there: Iterable[_Permit]) -> Iterable[Change]:
    for port in dict.fromkeys(rule.port for rule in plan.rules):
        if any(permit.anybody and permit.low <= port <= permit.high for permit in there):
            yield Change(
                f"{group} lets anybody reach port {port}, past the proxy: remove that rule", "note"
            )
