"""Plan what an instance needs before its first wake: rules, a role, and the agent.

Pure: it renders texts for the cloud and for the instance. `qwenctl provision` prints them; with
--apply, the cloud's `qwenctl.clouds.admin.Admin` applies rules and role.

The node ends its own billing when it hears no proxy for too long. On EC2 it powers the operating
system off, which needs no right. On Alibaba Cloud that does not end billing, so it calls
``StopInstance`` with its instance role (`gpu_node.selfstop.aliyun`).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from qwenctl import __version__
from qwenctl.clouds.admin import Admin, admin_of
from qwenctl.clouds.permissions import Instance
from qwenctl.clouds.plan import SECRET_FILE, Plan, Rule
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import is_loopback

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-\[\],=<>~!+:/@ ]*")


def make_plan(
    config: Config,
    gpu: str,
    *,
    sources: Sequence[str] = (),
    user: str = "qwenctl",
    package: str = "",
) -> Plan:
    """Make the plan for one GPU.

    Args:
        config: the whole configuration.
        gpu: name of the GPU.
        sources: networks or security groups that the proxy's requests come from; empty: the IP
            addresses in ``proxy.node_urls``.
        user: the agent's user.
        package: what pip installs; default: this version of qwenctl.

    Raises:
        ConfigError: the GPU is in no cloud, a node URL means this machine, or an argument is invalid.
    """
    table = config.gpu[gpu]
    cloud, settings = table.provider, table.settings
    if (admin := admin_of(cloud)) is None:
        raise ConfigError(
            f"gpu.{gpu} has the provider {cloud!r}, which needs nothing provisioned; "
            "this is for aliyun and aws"
        )
    region, instance_id = settings.region, settings.instance
    if local := [url for url in config.node_urls if is_loopback(urlsplit(url).hostname or "")]:
        raise ConfigError(
            f"nodes cannot reach {local[0]}: it means the node itself; set proxy.node_urls to an "
            'address of the proxy in their network, such as ["http://10.0.0.5:8080"]'
        )
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise ConfigError(f"{user!r} is no name of a Linux user")
    package = package or f"qwenctl[{admin.NODE_EXTRAS}]=={__version__}"
    if not _PACKAGE.fullmatch(package):
        raise ConfigError(f"{package!r} is nothing that pip can install")
    return Plan(
        gpu=gpu,
        cloud=cloud,
        instance=Instance(gpu, cloud, region, instance_id) if region and instance_id else None,
        rules=tuple(
            Rule(table.port, source, f"qwenctl proxy to gpu.{gpu}")
            for source in (map(_source, sources) if sources else _own_sources(config))
        ),
        user=user,
        package=package,
        settings=_settings(config, gpu, admin),
        runs="docker" if _all_containers(table) else "process",
        containers=any(service.container for service in table.service),
        agent=table.agent,
    )


def _all_containers(table: GpuConfig) -> bool:
    return bool(table.service) and all(service.container for service in table.service)


def _own_sources(config: Config) -> list[str]:
    """Return the IP addresses in ``proxy.node_urls``; a host name gives none."""
    found = []
    for url in config.node_urls:
        try:
            address = ipaddress.ip_address(urlsplit(url).hostname or "")
        except ValueError:
            continue
        found.append(f"{address}/{address.max_prefixlen}")
    return list(dict.fromkeys(found))


def _source(text: str) -> str:
    if re.fullmatch(r"sg-[a-z0-9]{4,32}", text):
        return text
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is neither a network such as 10.0.0.5/32 nor a security group's id"
        ) from None
    if network.prefixlen == 0:
        raise ConfigError(
            f"{text} is the whole internet, and the service asks nobody for a password: give the "
            "proxy's own address"
        )
    return str(network)


def _settings(config: Config, gpu: str, admin: Admin) -> str:
    """Return the settings file of `gpu_node.settings.NodeSettings`.

    Strings, numbers and lists of JSON are TOML, too.
    """
    values: dict[str, Any] = {
        "proxy_urls": list(config.node_urls),
        "gpu": gpu,
        "node_secret_file": SECRET_FILE,
        "state_dir": "/var/lib/qwenctl-node",
        "log_dir": "/var/log/qwenctl-node",
        "dead_man": config.gpu[gpu].timing.dead_man,
        **admin.NODE_SETTINGS,
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def role_commands(plan: Plan) -> list[str]:
    """Return the commands that create the node's role; empty where none is needed."""
    admin = admin_of(plan.cloud)
    if admin is None or plan.instance is None or not plan.agent:
        return []
    return admin.role_commands(plan.instance)
