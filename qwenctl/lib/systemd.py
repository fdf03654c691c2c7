"""Write, install and remove systemd units (systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from qwenctl.errors import UserError

SYSTEM_UNITS = Path("/etc/systemd/system")

Say = Callable[[str], None]

HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
# Netlink: the resolver asks the kernel which addresses this host has.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
UMask=0027
"""
"""For a program that only talks over the network and writes its own directories."""


def command(words: Sequence[str]) -> str:
    """Return the value of an ``Exec`` setting."""
    return " ".join(quote(word).replace("$", "$$") for word in words)


def escape(text: str) -> str:
    """Escape the value of a setting that takes one path, which may contain spaces."""
    return text.replace("%", "%%")


def quote(text: str) -> str:
    """Quote a word of a setting that takes several."""
    text = escape(text)
    if re.fullmatch(r"[A-Za-z0-9_./:=@%+,-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def systemctl(*arguments: str) -> str:
    """Return what ``systemctl`` prints, such as ``active`` for ``is-active``."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def systemd_runs() -> bool:
    """Return whether systemd manages this machine (sd_booted(3))."""
    return shutil.which("systemctl") is not None and Path("/run/systemd/system").is_dir()


class Host:
    """Changes this machine, or only says what would be changed."""

    def __init__(self, units: Path, dry_run: bool, say: Say) -> None:
        """``units``: the directory of the unit files."""
        self._units = units
        self._dry_run = dry_run
        self._say = say

    def run(self, *command: str) -> None:
        if not self._step(" ".join(command)):
            return
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()[-500:]
            raise UserError(f"{command[0]} {command[1]} failed: {words}")

    def make_user(self, name: str, home: str, *options: str) -> None:
        """Make a system user that cannot log in."""
        shell = shutil.which("nologin", path="/usr/sbin:/sbin:/usr/bin") or "/bin/false"
        self.run(
            *("useradd", "--system", "--user-group", *options, "--home-dir", home),
            *("--shell", shell, name),
        )

    def files(self, files: dict[str, str]) -> bool:
        """Write the units; return whether any has changed."""
        changed = False
        for name, text in files.items():
            path = self._units / name
            if path.is_file() and path.read_text("utf-8") == text:
                continue
            changed = True
            if self._step(f"{path}: {'changed' if path.exists() else 'new'}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh = path.with_name(f".{path.name}.new")
                fresh.write_text(text, "utf-8")
                fresh.chmod(0o644)
                fresh.replace(path)
        return changed

    def remove(self, path: Path) -> bool:
        """Remove the file; return whether there was one."""
        if not path.exists():
            return False
        if self._step(f"{path}: removed"):
            path.unlink()
        return True

    def remove_empty(self, directory: Path) -> None:
        if directory.is_dir() and not any(directory.iterdir()) and not self._dry_run:
            directory.rmdir()

    def _step(self, step: str) -> bool:
        """Say the step; return whether to do it."""
        self._say(f"would: {step}" if self._dry_run else step)
        return not self._dry_run


def is_root() -> bool:
    return os.geteuid() == 0
