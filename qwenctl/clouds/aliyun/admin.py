"""Alibaba Cloud for administrators: a `qwenctl.clouds.admin.Admin`."""

from __future__ import annotations

from collections.abc import Iterator

from qwenctl.clouds.admin import InstanceCreator, LaunchRequest
from qwenctl.clouds.aliyun.api import Ecs, default_credentials, ecs_of
from qwenctl.clouds.aliyun.create import AliyunCreator
from qwenctl.clouds.aliyun.discover import IMPORTER
from qwenctl.clouds.aliyun.permissions import (
    admin_policy,
    node_policy,
    node_trust,
    proxy_policy,
    role_commands,
)
from qwenctl.clouds.aliyun.ram_role import Ram, apply_role
from qwenctl.clouds.aliyun.security_group import apply_rules
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.plan import VENV, Change, Plan

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

REQUIRED_KEYS = ("image_id", "instance_type", "vswitch_id", "security_group_id")
NODE_EXTRAS = "node,aliyun"
NODE_SETTINGS = {
    "cloud": "aliyun",
    "power_off_command": [f"{VENV}/bin/python", "-m", "gpu_node.aliyun_stop"],
}
ROLE_NOT_NEEDED: tuple[str, ...] = ()
IDLE_ALARM = "a scheduled stop of the instance (OOS) at night"


def make_creator(
    settings: AliyunConfig, request: LaunchRequest, *, creating: bool
) -> InstanceCreator:
    """Make the creator of the instance of a template."""
    keep = settings.keep_charging or not creating
    return AliyunCreator(ecs_of(settings), settings.template, request, keep_charging=keep)


def apply(
    settings: AliyunConfig, plan: Plan, group: str = "", *, dry_run: bool = False
) -> Iterator[Change]:
    """Add the missing security group rules; create and attach the node's role."""
    credentials = default_credentials()
    ecs = Ecs(settings, credentials)
    yield from apply_rules(ecs, plan, group, dry_run=dry_run)
    if plan.instance is not None and plan.agent:
        yield from apply_role(ecs, Ram(settings, credentials), plan.instance, dry_run=dry_run)
