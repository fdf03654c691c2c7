"""Rules of security groups, for all clouds."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenctl.clouds.base import NotFound
from qwenctl.clouds.permissions import Instance
from qwenctl.clouds.plan import Change, Plan, Rule
from qwenctl.errors import ConfigError


@dataclass(frozen=True)
class Permit:
    """An inbound rule that the group has."""

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


def instance_of(plan: Plan) -> Instance:
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


def group_of(found: Sequence[str], raw: Any, plan: Plan, wanted: str) -> str:
    instance = instance_of(plan)
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


def add_rules(
    plan: Plan, group: str, there: Sequence[Permit], add: Callable[[Rule], object], *, dry_run: bool
) -> Iterator[Change]:
    """Add the plan's missing rules to the group; yield each once it is there."""
    for rule in plan.rules:
        what = f"{group}: allow tcp {rule.port} from {rule.source}"
        # A rule for anybody does not count: `notes_of` advises to remove it.
        if any(permit.covers(rule) and not permit.anybody for permit in there):
            yield Change(what, "already there")
            continue
        if not dry_run:
            add(rule)
        yield Change.by("add", what, dry_run=dry_run)


def notes_of(plan: Plan, group: str, there: Iterable[Permit]) -> Iterable[Change]:
    for port in dict.fromkeys(rule.port for rule in plan.rules):
        if any(permit.anybody and permit.low <= port <= permit.high for permit in there):
            yield Change(
                f"{group} lets anybody reach port {port}, past the proxy: remove that rule", "note"
            )
