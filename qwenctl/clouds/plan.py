"""The plan of `qwenctl provision`: rules, files and cloud-init of one instance."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any, Literal

from qwenctl.clouds.permissions import Instance

SECRET_FILE = "/etc/qwenctl/node.secret"
SETTINGS_FILE = "/etc/qwenctl/node.toml"
UNIT = "qwenctl-node.service"
VENV = "/opt/qwenctl"

IMAGE_FOR_CONTAINERS = "an image with Docker and nvidia-container-toolkit"


_DONE = {"add": "added", "attach": "attached", "change": "changed", "make": "made"}


@dataclass(frozen=True)
class Change:
    """The result for one resource of the cloud."""

    what: str
    done: str
    """``added``, ``attached``, ``changed``, ``made``, or ``would add`` and so on in a dry run;
    ``already there``; ``note`` for a hint to the administrator."""

    @classmethod
    def by(
        cls, verb: Literal["add", "attach", "change", "make"], what: str, *, dry_run: bool
    ) -> Change:
        return cls(what, f"would {verb}" if dry_run else _DONE[verb])


@dataclass(frozen=True)
class Rule:
    """An inbound rule of the instance's security group: TCP, one port, one source."""

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
    """What the instance of one GPU needs."""

    gpu: str
    cloud: str
    instance: Instance | None
    """None while the configuration has no instance id."""
    rules: tuple[Rule, ...]
    user: str
    """The user of the agent and its services; created if missing."""
    package: str
    """What pip installs."""
    settings: str
    """The agent's settings, TOML."""
    runs: Literal["docker", "process"]
    """What the agent's unit allows: ``docker`` if every service is a container."""
    containers: bool
    """Whether a service is a container, so that the instance needs Docker."""
    agent: bool
    """False: the instance runs its service by itself, and needs the rules only."""

    def files(self, secret: str = "") -> list[File]:
        """Return the instance's files; the secret's only if it is given."""
        files = [
            File(SETTINGS_FILE, self.settings),
        ]
        if secret:
            files.append(File(SECRET_FILE, secret + "\n", "0600"))
        return files

    def commands(self) -> list[str]:
        """Return the shell commands that follow the files; each may be run again."""
        install = [
            *(f"{VENV}/bin/qwenctl-node", "install", "--config", SETTINGS_FILE),
            *("--user", self.user, "--runs", self.runs),
        ]
        commands = [install_package(VENV, self.package), shlex.join(install)]
        if self.containers:
            commands.append(look_for_docker(commands[-1]))
        return commands

    def user_data(self, secret: str = "") -> str:
        """Return cloud-init user data, which runs at the *first* boot only."""
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
        """Return the same as a shell script for an existing instance, to be run as root."""
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


def compact(document: Any) -> str:
    """Return JSON without spaces."""
    return json.dumps(document, separators=(",", ":"))


def _secret_note(secret: str) -> list[str]:
    if secret:
        return [
            "It holds the node secret: whoever may read the instance's user data can read it.",
        ]
    return [
        f"The node secret is not in it. The service waits for {SECRET_FILE};",
        "`qwenctl provision` prints the command that copies it there.",
    ]


# Alibaba Cloud Linux 3 has Python 3.6 as `python3`, and newer ones as packages of their own; Debian
# and Ubuntu have a good one, but without `venv`.
_FIND = """\
find_python() {
  for p in python3.13 python3.12 python3.11 python3.10 python3; do
    if "$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$p"; return
    fi
  done
  return 1
}
"""

_GET = """\
get_python() {
  if command -v apt-get >/dev/null; then
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y python3 python3-venv
  elif command -v dnf >/dev/null; then
    dnf install -y python3.11 python3.11-pip
  elif command -v yum >/dev/null; then
    yum install -y python3.11 python3.11-pip
  fi
}
"""


def install_package(venv: str, package: str) -> str:
    """Return a POSIX shell script that installs the package into a virtual env.

    It takes the newest Python from 3.10 on, installs one if there is none, and ends with 1 and a
    sentence if there is still none. It may be run again.
    """
    place = shlex.quote(venv)
    return f"""{_FIND}{_GET}\
if ! {place}/bin/python -c 'import pip' 2>/dev/null; then
  python=$(find_python) || {{ get_python >&2; python=$(find_python); }} || {{
    echo "qwenctl needs Python 3.10 or newer with venv: install one, such as python3.11" >&2
    exit 1
  }}
  "$python" -m venv {place}
fi
{place}/bin/pip install --quiet --upgrade {shlex.quote(package)}
"""


def look_for_docker(again: str) -> str:
    """Return a POSIX shell script that names on stderr what containers lack.

    It installs nothing: Docker alone does not suffice, and no distribution has NVIDIA's toolkit.

    Args:
        again: the command to run afterwards; it puts the agent's user into the group docker.
    """
    advice = f"Services are containers: install what is missing, then run again: {again}"
    return f"""missing=
command -v docker >/dev/null || missing=docker
command -v nvidia-ctk >/dev/null || missing="${{missing:+$missing }}nvidia-container-toolkit"
if [ -n "$missing" ]; then
  printf 'qwenctl: missing: %s. %s\\n' "$missing" {shlex.quote(advice)} >&2
fi
"""
