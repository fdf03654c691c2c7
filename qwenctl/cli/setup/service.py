"""`qwenctl service`: the proxy as a systemd service, of the system or of a user."""

from __future__ import annotations

import os
import re
import shlex
import sys
from math import ceil
from pathlib import Path

from qwenctl.admin.validation import check_password
from qwenctl.cli.common.context import load, print_json
from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError, ExitCode, UserError
from qwenctl.lib import systemd

UNIT = "qwenctl.service"
USER = "qwenctl"
STATE_DIR = "/var/lib/qwenctl"
ENVIRONMENT = "/etc/qwenctl/environment"
STOP_MARGIN = 15
"""Seconds that the end may take beyond `proxy.shutdown_grace`."""


def render(config: Config, program: tuple[str, ...], *, user: str) -> str:
    """Return the unit; ``user``: who it runs as, empty for a service of the user's own."""
    command = systemd.command([*program, "serve", "--config", str(Path(config.source).absolute())])
    _, port = config.check_listen()
    own = _system_lines(config, user, port) if user else "NoNewPrivileges=yes\n"
    return f"""\
[Unit]
Description=qwenctl proxy: wakes the GPU, forwards to it, and lets it sleep
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={command}
Restart=always
# After a mistake in the settings, too: a port in use or an address that is not there yet is the same.
RestartSec=5
# Only the proxy is told to end: its store stays for what it has in flight, and for its successor.
KillMode=process
# Longer than proxy.shutdown_grace, for requests in flight; install again after a change of it.
TimeoutStopSec={ceil(config.proxy.shutdown_grace) + STOP_MARGIN}
LimitNOFILE=65536
OOMPolicy=continue
{own}
[Install]
WantedBy={"multi-user.target" if user else "default.target"}
"""


def _system_lines(config: Config, user: str, port: int) -> str:
    lines = f"User={user}\n# Credentials of the cloud, if they are variables.\n"
    lines += f"EnvironmentFile=-{ENVIRONMENT}\n"
    if not config.state_dir:
        lines += f"Environment=QWENCTL_STATE_DIR={STATE_DIR}\n"
    lines += f"StateDirectory={Path(STATE_DIR).name}\nStateDirectoryMode=0700\n"
    if config.state_dir and str(config.state_path) != STATE_DIR:
        lines += f"ReadWritePaths={systemd.quote(str(config.state_path))}\n"
    if any(gpu.settings.on_this_machine for gpu in config.gpu.values()):
        # Its instances are its children, with services that do what they like.
        return lines + "NoNewPrivileges=yes\n"
    lines += systemd.HARDENING + "SystemCallFilter=@system-service\nPrivateDevices=yes\n"
    if port < 1024:
        bind = "CAP_NET_BIND_SERVICE"
        lines += f"CapabilityBoundingSet={bind}\nAmbientCapabilities={bind}\n"
    return lines


def _program() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("qwenctl")
    return (str(script),) if script.exists() else (sys.executable, "-m", "qwenctl.cli")


class _Service:
    """The unit of the system, or of the user who asks."""

    def __init__(self, own: bool) -> None:
        self.own = own
        base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        self.units = base / "systemd" / "user" if own else systemd.SYSTEM_UNITS
        self.path = self.units / UNIT
        self.flags = ("--user",) if own else ()

    def host(self, dry_run: bool) -> systemd.Host:
        if not dry_run:
            if not systemd.systemd_runs():
                raise UserError(
                    "systemd does not run here; start `qwenctl serve` in another way, or use the "
                    "container image (docs/deployment.md)"
                )
            if not self.own and not systemd.is_root():
                raise UserError("this must be run as root (sudo), or with --user")
        return systemd.Host(self.units, dry_run, print)

    def ask(self, what: str) -> str:
        return systemd.systemctl(*self.flags, what, UNIT) or "unknown"


def install(own: bool, run_as: str, start: bool, dry_run: bool, config: str | None) -> None:
    """Do `qwenctl service install`."""
    loaded = load(config)
    if not loaded.source or not loaded.gpu:
        raise ConfigError("write a config file first: `qwenctl init`; name it with --config")
    check_password(loaded)
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", run_as):
        raise UserError(f"{run_as!r} is no name of a Linux user")
    service = _Service(own)
    text = render(loaded, _program(), user="" if own else run_as)
    if dry_run:
        print(f"# {service.path}\n{text}", end="")
        return
    host = service.host(dry_run)
    if not own:
        _prepare_user(host, run_as, loaded)
    changed = host.files({UNIT: text})
    if changed:
        host.run("systemctl", *service.flags, "daemon-reload")
    host.run("systemctl", *service.flags, "enable", "--quiet", UNIT)
    if start:
        verb = "restart" if changed or service.ask("is-active") != "active" else "start"
        host.run("systemctl", *service.flags, verb, UNIT)
        print(f"{UNIT}: {service.ask('is-active')}; its log: journalctl {_journal(own)}")
    if own:
        print("So that it runs while you are not signed in: loginctl enable-linger")
    elif not loaded.state_dir:
        print(
            f"For `qwenctl status` and the like, set state_dir = {STATE_DIR!r} in the config file"
        )


def _journal(own: bool) -> str:
    return f"--user -u {UNIT}" if own else f"-u {UNIT}"


def _prepare_user(host: systemd.Host, name: str, config: Config) -> None:
    """Make the user if there is none; check that it can read the config and run the program."""
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        host.make_user(name, STATE_DIR, "--no-create-home")
    for words, problem in (
        ([*_program(), "--version"], f"cannot run {_program()[0]}: install it in /opt/qwenctl"),
        (["test", "-r", config.source], f"cannot read {config.source}: chown it, mode 600"),
    ):
        try:
            host.run("runuser", "-u", name, "--", *words)
        except UserError:
            raise UserError(f"the user {name} {problem}") from None


def status(own: bool, json: bool, config: str | None) -> int:
    """Do `qwenctl service status`; return the exit code: 0 only where it runs."""
    service = _Service(own)
    installed = service.path.is_file()
    found = {
        "unit": str(service.path),
        "installed": installed,
        "enabled": installed and service.ask("is-enabled") == "enabled",
        "state": service.ask("is-active") if installed else "not installed",
    }
    if json:
        print_json(found)
    elif not installed:
        print(f"not installed: there is no {service.path}; `qwenctl service install` writes it")
    else:
        when = "at each boot" if found["enabled"] else "by hand only"
        print(f"{UNIT}: {found['state']}, started {when}")
        print(f"its log: journalctl {_journal(own)}")
        if not _fits(service.path.read_text("utf-8"), config):
            print("its unit is not what these settings need: `qwenctl service install` again")
    return int(ExitCode.OK if found["state"] == "active" else ExitCode.ERROR)


def _fits(unit: str, config: str | None) -> bool:
    """Return whether it is the unit of its settings, or of these; True where they cannot be read."""
    command = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    user = re.search(r"^User=(\S+)$", unit, re.MULTILINE)
    own = shlex.split(command[1])[-1].replace("%%", "%").replace("$$", "$") if command else None
    try:
        return unit == render(load(config or own), _program(), user=user[1] if user else "")
    except UserError:
        return True


def uninstall(own: bool, dry_run: bool) -> None:
    """Do `qwenctl service uninstall`."""
    service = _Service(own)
    host = service.host(dry_run)
    if not service.path.exists():
        print("nothing was installed")
        return
    host.run("systemctl", *service.flags, "disable", "--quiet", "--now", UNIT)
    host.remove(service.path)
    host.run("systemctl", *service.flags, "daemon-reload")
    print(
        "Settings, state and the user stay. A GPU that is on goes off by its agent, or: qwenctl down"
    )
