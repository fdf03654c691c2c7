"""What a GPU's instance needs before its first wake: rules, a role, and the agent as a service.

Pure: it renders texts for the cloud and for the instance. `qwenctl provision` prints them; with
--apply, `qwenctl.security_rules` and `qwenctl.node_role` see to rules and role.

The node ends its own billing when no proxy is heard for too long. On EC2 it powers the operating
system off, which needs no right at all. On Alibaba Cloud that goes on costing, so it calls
``StopInstance`` with its instance role (`gpu_node.aliyun_stop`).
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from qwenctl import __version__
from qwenctl.access_policy import Cloud, Instance, node_policy, node_role_name, node_trust
from qwenctl.config import Config, GpuConfig, is_loopback
from qwenctl.errors import ConfigError
from qwenctl.node_bootstrap import install_package, look_for_docker

__all__ = [
    "IMAGE_FOR_CONTAINERS",
    "SECRET_FILE",
    "UNIT",
    "Change",
    "File",
    "Instance",
    "Plan",
    "Rule",
    "compact",
    "make_plan",
]

SECRET_FILE = "/etc/qwenctl/node.secret"
SETTINGS_FILE = "/etc/qwenctl/node.toml"
UNIT = "qwenctl-node.service"
VENV = "/opt/qwenctl"

IMAGE_FOR_CONTAINERS = "an image with Docker and nvidia-container-toolkit"

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-\[\],=<>~!+:/@ ]*")


_DONE = {"add": "added", "attach": "attached", "change": "changed", "make": "made"}


@dataclass(frozen=True)
class Change:
    """One thing in the cloud that was looked at."""

    what: str
    done: str
    """``added``, ``attached``, ``changed``, ``made``, or ``would add`` and so on in a dry run;
    ``already there``; ``note`` for something to look at."""

    @classmethod
    def by(
        cls, verb: Literal["add", "attach", "change", "make"], what: str, *, dry_run: bool
    ) -> Change:
        return cls(what, f"would {verb}" if dry_run else _DONE[verb])


@dataclass(frozen=True)
class Rule:
    """One inbound rule of the instance's security group: TCP, one port, one source."""

    port: int
    source: str
    """A network such as ``10.0.0.5/32``, or the id of the proxy's security group."""
    description: str

    @property
    def is_group(self) -> bool:
        return self.source.startswith("sg-")


@dataclass(frozen=True)
class File:
    """A file on the instance."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = "root"


@dataclass(frozen=True)
class Plan:
    """All that one GPU needs."""

    gpu: str
    cloud: Cloud
    instance: Instance | None
    """None while the configuration has no instance id."""
    rules: tuple[Rule, ...]
    user: str
    """Who the agent and its services run as; made if there is no such user."""
    package: str
    """What pip installs."""
    settings: str
    """The agent's settings, TOML."""
    runs: Literal["docker", "process"]
    """What the agent's unit must allow: ``docker`` if every service is a container."""
    containers: bool
    """Whether a service is a container: then the instance needs Docker."""
    agent: bool
    """False: the instance runs its service by itself, and needs the rules only."""

    def files(self, secret: str = "") -> list[File]:
        """The instance's files; the secret's only if it is given."""
        files = [
            File(SETTINGS_FILE, self.settings),
        ]
        if secret:
            files.append(File(SECRET_FILE, secret + "\n", "0600"))
        return files

    def commands(self) -> list[str]:
        """The shell commands that follow the files; each may be run again."""
        install = [
            *(f"{VENV}/bin/qwenctl-node", "install", "--config", SETTINGS_FILE),
            *("--user", self.user, "--runs", self.runs),
        ]
        commands = [install_package(VENV, self.package), shlex.join(install)]
        if self.containers:
            commands.append(look_for_docker(commands[-1]))
        return commands

    def role_commands(self) -> list[str]:
        """What makes the role, with Alibaba Cloud's own command line; none where none is needed."""
        if self.cloud != "aliyun" or self.instance is None or not self.agent:
            return []
        instance, name = self.instance, node_role_name(self.instance)

        def command(product: str, action: str, **parameters: str) -> str:
            flags = [word for key, value in parameters.items() for word in (f"--{key}", value)]
            return shlex.join(["aliyun", product, action, *flags])

        return [
            command(
                "ram",
                "CreateRole",
                RoleName=name,
                AssumeRolePolicyDocument=compact(node_trust("aliyun", instance.region)),
            ),
            command(
                "ram",
                "CreatePolicy",
                PolicyName=name,
                PolicyDocument=compact(node_policy([instance])),
            ),
            command(
                "ram",
                "AttachPolicyToRole",
                PolicyType="Custom",
                PolicyName=name,
                RoleName=name,
            ),
            command(
                "ecs",
                "AttachInstanceRamRole",
                RegionId=instance.region,
                RamRoleName=name,
                InstanceIds=json.dumps([instance.instance_id]),
            ),
        ]

    def user_data(self, secret: str = "") -> str:
        """cloud-init user data. It runs at the *first* boot of an instance only."""
        lines = ["#cloud-config", f"# The agent of the GPU {self.gpu!r} as a systemd service."]
        lines += [f"# {line}" for line in _secret_note(secret)]
        lines.append("write_files:")
        for file in self.files(secret):
            lines += [
                f"  - path: {file.path}",
                f'    permissions: "{file.mode}"',
                "    content: |",
                *(f"      {line}".rstrip() for line in file.content.splitlines()),
            ]
        lines.append("runcmd:")
        lines += [f"  - {json.dumps(command)}" for command in self.commands()]
        return "\n".join(lines) + "\n"

    def script(self, secret: str = "") -> str:
        """The same as a shell script, for an instance that exists already. Run it as root."""
        lines = ["#!/bin/sh", f"# The agent of the GPU {self.gpu!r} as a systemd service."]
        lines += [f"# {line}" for line in _secret_note(secret)]
        lines += ["set -eu", "umask 022"]
        for file in self.files(secret):
            path = shlex.quote(file.path)
            lines += [
                f"mkdir -p {shlex.quote(file.path.rpartition('/')[0])}",
                f"install -m {file.mode} /dev/null {path}",
                f"cat > {path} <<'END_OF_FILE'",
                file.content.rstrip("\n"),
                "END_OF_FILE",
            ]
        return "\n".join([*lines, *self.commands()]) + "\n"


def make_plan(
    config: Config,
    gpu: str,
    *,
    sources: Sequence[str] = (),
    user: str = "qwenctl",
    package: str = "",
) -> Plan:
    """The plan for one GPU.

    Args:
        config: the whole configuration.
        gpu: name of the GPU.
        sources: networks or security groups that the proxy's requests come from; none: the hosts
            of ``proxy.node_urls`` as far as they are addresses.
        user: who the agent runs as.
        package: what pip installs; default: this version of qwenctl.

    Raises:
        ConfigError: not a cloud's GPU, a node URL that means this machine, or an unusable argument.
    """
    table = config.gpu[gpu]
    cloud: Cloud
    if table.provider == "aliyun":
        cloud, region, instance_id = "aliyun", table.aliyun.region, table.aliyun.instance_id
    elif table.provider == "aws":
        cloud, region, instance_id = "aws", table.aws.region, table.aws.instance_id
    else:
        raise ConfigError(
            f"gpu.{gpu} has the provider {table.provider!r}, which needs nothing provisioned; "
            "this is for aliyun and aws"
        )
    if local := [url for url in config.node_urls if is_loopback(urlsplit(url).hostname or "")]:
        raise ConfigError(
            f"nodes cannot reach {local[0]}: it means the node itself; set proxy.node_urls to an "
            'address of the proxy in their network, such as ["http://10.0.0.5:8080"]'
        )
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise ConfigError(f"{user!r} is no name of a Linux user")
    extra = "[node,aliyun]" if cloud == "aliyun" else "[node]"
    package = package or f"qwenctl{extra}=={__version__}"
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
        settings=_settings(config, gpu, cloud),
        runs="docker" if _all_containers(table) else "process",
        containers=any(service.container for service in table.service),
        agent=table.agent,
    )


def _all_containers(table: GpuConfig) -> bool:
    return bool(table.service) and all(service.container for service in table.service)


def compact(document: Any) -> str:
    """JSON without spaces."""
    return json.dumps(document, separators=(",", ":"))


def _own_sources(config: Config) -> list[str]:
    """The proxies' addresses as nodes know them. A host name gives none: ask with ``--from``."""
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


def _settings(config: Config, gpu: str, cloud: Cloud) -> str:
    """What `gpu_node.settings.NodeSettings` reads. Strings, numbers and lists of JSON are TOML."""
    values: dict[str, Any] = {
        "proxy_urls": list(config.node_urls),
        "gpu": gpu,
        "node_secret_file": SECRET_FILE,
        "state_dir": "/var/lib/qwenctl-node",
        "log_dir": "/var/log/qwenctl-node",
        "dead_man": config.gpu[gpu].timing.dead_man,
        "cloud": cloud,
    }
    if cloud == "aliyun":
        values["power_off_command"] = [f"{VENV}/bin/python", "-m", "gpu_node.aliyun_stop"]
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _secret_note(secret: str) -> list[str]:
    if secret:
        return [
            "It holds the node secret: whoever may read the instance's user data can read it.",
        ]
    return [
        f"The node secret is not in it. The service waits for {SECRET_FILE};",
        "`qwenctl provision` prints the command that copies it there.",
    ]
