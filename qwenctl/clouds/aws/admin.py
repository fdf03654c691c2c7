"""EC2 for administrators: a `qwenctl.clouds.admin.Admin`."""

from __future__ import annotations

from collections.abc import Iterator

from qwenctl.clouds.admin import InstanceCreator, LaunchRequest
from qwenctl.clouds.aws.api import account_of
from qwenctl.clouds.aws.create import AwsCreator
from qwenctl.clouds.aws.discover import IMPORTER
from qwenctl.clouds.aws.permissions import (
    admin_policy,
    node_policy,
    node_trust,
    proxy_policy,
    role_commands,
)
from qwenctl.clouds.aws.security_group import apply_rules
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.plan import Change, Plan

__all__ = [
    "IDLE_ALARM",
    "IMPORTER",
    "NODE_EXTRAS",
    "NODE_SETTINGS",
    "REQUIRED_KEYS",
    "ROLE_NOT_NEEDED",
    "admin_policy",
    "apply",
    "make_creator",
    "node_policy",
    "node_trust",
    "proxy_policy",
    "role_commands",
]

REQUIRED_KEYS = ("image_id", "instance_type", "subnet_id", "security_group_ids")
NODE_EXTRAS = "node"
NODE_SETTINGS = {"cloud": "aws"}
ROLE_NOT_NEEDED = (
    "None is needed, and --apply makes none: the node powers itself off when no proxy is",
    "heard for too long, and asks AWS for nothing else than its own metadata.",
    "InstanceInitiatedShutdownBehavior must be `stop`; --apply sees to that.",
)
IDLE_ALARM = "a CloudWatch alarm that stops the instance when its CPU idles for hours"


def make_creator(
    settings: AwsConfig,
    request: LaunchRequest,
    *,
    creating: bool,  # noqa: ARG001
) -> InstanceCreator:
    """Make the creator of the instance of a template."""
    return AwsCreator(account_of(settings), settings.template, request)


def apply(
    settings: AwsConfig, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """Add the missing security group rules; let an OS shutdown only stop the instance."""
    account = account_of(settings, f"gpu.{plan.gpu}.aws")
    yield from apply_rules(account, plan, group, dry_run=dry_run)
