"""`qwenctl permissions`: print least-privilege policies."""

from __future__ import annotations

from qwenctl.admin.permissions import admin_policy, configured, node_policy, proxy_policy
from qwenctl.cli.common.context import load, print_json


def permissions(cloud: str, gpu: str | None, node: bool, admin: bool, config: str | None) -> None:
    """Do `qwenctl permissions`."""
    loaded = load(config)
    if admin:
        print_json(admin_policy(loaded, cloud, gpu))
        return
    instances = configured(loaded, cloud, gpu)
    print_json(node_policy(instances) if node else proxy_policy(instances))
