"""Add a plan's rules to an ECS security group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qwenctl.clouds.aliyun.api import Ecs
from qwenctl.clouds.plan import Change, Plan, Rule
from qwenctl.clouds.security import Permit, add_rules, group_of, instance_of, notes_of


def apply_rules(
    ecs: Ecs, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """Add the plan's rules to the security group; yield each once it is there.

    Args:
        ecs: the instance's region.
        plan: the rules and the instance.
        group: the group, if the instance has several.
        dry_run: change nothing.

    Raises:
        ConfigError: the group is ambiguous, or the plan has no rule.
        ProviderError: the cloud refuses. The changes yielded before are done.
    """
    instance = instance_of(plan)
    raw = ecs.instance(instance.instance_id)
    group = group_of(
        (raw.get("SecurityGroupIds") or {}).get("SecurityGroupId") or (), raw, plan, group
    )
    resource = f"acs:ecs:{ecs.region}:*:securitygroup/{group}"
    answer = ecs.call(
        "DescribeSecurityGroupAttribute",
        resource,
        SecurityGroupId=group,
        Direction="ingress",
        MaxResults=1000,
    )
    there = list(_aliyun_permits((answer.get("Permissions") or {}).get("Permission") or ()))

    def add(rule: Rule) -> None:
        v6 = ":" in rule.source
        source = "SourceGroupId" if rule.is_group else "Ipv6SourceCidrIp" if v6 else "SourceCidrIp"
        ecs.call(
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

    yield from add_rules(plan, group, there, add, dry_run=dry_run)
    yield from notes_of(plan, group, there)


def _aliyun_permits(permissions: Iterable[Any]) -> Iterable[Permit]:
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
        yield Permit(source, *((1, 65535) if ports == (-1, -1) else ports))
