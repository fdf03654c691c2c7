"""``qwenctl-node install`` and ``uninstall``: the systemd units of agent and watchdog.

Each step looks first and does only what is missing, so that both may be run again at any time: an
upgrade is a new version of the package and another ``install``. State, logs and settings stay.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from gpu_node.selfstop.busy import read_spec
from gpu_node.selfstop.watchdog import MARGIN
from gpu_node.settings import STATE_FILES, NodeSettings, save_last_good
from gpu_node.setup.doctor import in_docker_group, uid_of
from gpu_node.setup.systemd_units import AGENT, DROP_IN, TIMER, UNITS, WATCHDOG, Node, render
from gpu_node.status_file import read_status
from qwenctl.errors import UserError
from qwenctl.lib.systemd import SYSTEM_UNITS, Host, Say, is_root, systemctl, systemd_runs
from qwenctl.lib.version import full_version

UNIT_DIR = SYSTEM_UNITS


def describe(settings: NodeSettings, config: Path, *, user: str = "", runs: str = "") -> Node:
    """Return what the units say.

    Args:
        settings: the agent's.
        config: the file that they are in.
        user: the agent's; default: as installed now, else ``qwenctl``.
        runs: ``docker`` if all services are containers, ``process`` if they need not be; default: by
            what the proxy has said last, and as long as it has said nothing ``process``.

    Raises:
        UserError: a name or a path that a system service cannot have.
    """
    user = user or _present_user() or "qwenctl"
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", user):
        raise UserError(f"{user!r} is no name of a Linux user")
    for key in ("node_secret_file", "state_dir", "log_dir"):
        path = getattr(settings, key)
        if path and not path.startswith("/"):
            raise UserError(f"{key}: {path} must be an absolute path, for a system service")
    if not runs:
        spec = read_spec(Path(settings.state_dir, "spec.json"))
        all_docker = spec is not None and all(s.runtime == "docker" for s in spec.services)
        runs = "docker" if all_docker else "process"
    return Node(
        program=_program(),
        python=sys.executable,
        config=str(config.absolute()),
        user=user,
        secret_file=settings.node_secret_file or str(config.absolute()),
        state_dir=settings.state_dir,
        log_dir=settings.log_dir,
        # There a powered-off instance costs nothing, and needs no right for it.
        power_off=settings.cloud == "aws" and not settings.power_off_command,
        processes=runs == "process",
    )


def install(
    node: Node, settings: NodeSettings, *, start: bool = True, dry_run: bool = False, say: Say
) -> None:
    """Install the node's units and what they need.

    Args:
        node: from `describe`.
        settings: the agent's.
        start: whether to start it, too; not when an image is prepared.
        dry_run: only say what would be done.
        say: is told each step.

    Raises:
        UserError: it cannot be done.
    """
    host = _Host(dry_run, say)
    host.need_root_and_systemd()
    changed = host.user(node.user)
    host.check_access(node)
    if settings.node_secret_file:
        host.secret(Path(settings.node_secret_file), node.user)
    for path in (node.state_dir, node.log_dir):
        host.directory(Path(path), node.user)
    host.settings(settings, node.user)
    files = render(node)
    changed |= host.files(files)
    if not node.processes:
        changed |= host.remove(UNIT_DIR / DROP_IN)
    if changed:
        host.run("systemctl", "daemon-reload")
    off = [unit for unit in (AGENT, TIMER) if systemctl("is-enabled", unit) != "enabled"]
    if off:
        host.run("systemctl", "enable", "--quiet", *off)
    if not start:
        return
    version = read_status(Path(node.state_dir, "status.json")).get("version", full_version())
    active = systemctl("is-active", AGENT) == "active"
    if active and (changed or version != full_version()):
        host.run("systemctl", "restart", AGENT)
    elif not active:
        host.run("systemctl", "start", AGENT)
    if systemctl("is-active", TIMER) != "active":
        host.run("systemctl", "start", TIMER)
    if dry_run:
        return
    if not Path(node.secret_file).exists():
        say(f"the agent waits for {node.secret_file}; then: systemctl start {AGENT}")
    else:
        say(f"{AGENT}: {systemctl('is-active', AGENT)}; see `qwenctl-node status`")
    if not (settings.power_off_command or node.power_off):
        say("note: no power_off_command is set: nothing stops this instance if the proxy is gone")
    elif not Path(node.secret_file).exists():
        minutes = (settings.dead_man + MARGIN) / 60
        say(
            "until it runs nobody is in charge, and the watchdog stops this instance in "
            f"{minutes:.0f} min; to have longer: systemctl stop {TIMER}"
        )


def uninstall(
    settings: NodeSettings | None, *, purge: bool = False, dry_run: bool = False, say: Say
) -> None:
    """Stop the agent and remove its units. User, settings and secret stay.

    Args:
        settings: the agent's, if they can be read.
        purge: remove state and logs, too.
        dry_run: only say what would be done.
        say: is told each step.

    Raises:
        UserError: it cannot be done.
    """
    host = _Host(dry_run, say)
    host.need_root_and_systemd()
    present = [unit for unit in (TIMER, WATCHDOG, AGENT) if (UNIT_DIR / unit).exists()]
    if present:
        host.run("systemctl", "disable", "--quiet", "--now", *present)
    for name in (*UNITS, DROP_IN):
        host.remove(UNIT_DIR / name)
    drop_ins = (UNIT_DIR / DROP_IN).parent
    host.remove_empty(drop_ins)
    if present:
        host.run("systemctl", "daemon-reload")
    if purge and settings is not None:
        state_dir, log_dir = Path(settings.state_dir), Path(settings.log_dir)
        for file in [*(state_dir / name for name in STATE_FILES), *log_dir.glob("*.log*")]:
            host.remove(file)
        for directory in (state_dir, log_dir):  # other programs' files stay, and their directory
            host.remove_empty(directory)
    if not present:
        say("nothing was installed")
    else:
        say("containers run on: docker ps --filter label=qwenctl.gpu")


class _Host(Host):
    """Changes the node, or only says what would be changed."""

    def __init__(self, dry_run: bool, say: Say) -> None:
        super().__init__(UNIT_DIR, dry_run, say)

    def need_root_and_systemd(self) -> None:
        if not systemd_runs():
            raise UserError(
                "systemd does not run here; start `qwenctl-node --config FILE` in another way, "
                "or use the compose file of examples/node-compose"
            )
        if not is_root() and not self._dry_run:
            raise UserError("this must be run as root: sudo qwenctl-node install …")

    def user(self, name: str) -> bool:
        """Make the user, and give it Docker; return whether anything was changed."""
        fresh = uid_of(name) < 0
        if fresh:
            self.make_user(name, f"/home/{name}", "--create-home")
            if self._dry_run:
                return True
        try:
            grp.getgrnam("docker")
        except KeyError:
            self._say(
                "note: there is no group docker; if you install Docker later, run this again "
                "(rootless Docker: set docker_host in the settings)"
            )
            return fresh
        if in_docker_group(name):
            return fresh
        self.run("usermod", "--append", "--groups", "docker", name)
        return True

    def check_access(self, node: Node) -> None:
        """Raise unless the user can run the program and read the settings."""
        if self._dry_run or node.user == "root":
            return
        no_program = (
            f"the user {node.user} cannot run {node.program[0]}: install it where every user may "
            "read, such as python3 -m venv /opt/qwenctl"
        )
        no_config = f"the user {node.user} cannot read {node.config}: chown it"
        for command, problem in (
            ([*node.program, "--version"], no_program),
            (["test", "-r", node.config], no_config),
        ):
            done = subprocess.run(
                ["runuser", "-u", node.user, "--", *command],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                raise UserError(problem)

    def secret(self, path: Path, user: str) -> None:
        """Make the secret readable for the user only."""
        if not path.exists():
            return
        found = path.stat()
        if found.st_uid == uid_of(user) and found.st_mode & 0o077 == 0:
            return
        if self._step(f"{path}: for {user} only"):
            path.chmod(0o600)
            shutil.chown(path, user)

    def directory(self, path: Path, user: str) -> None:
        """Make the directory, and it and the agent's files in it the user's."""
        uid = uid_of(user)
        # A file may be root's, after a start of the agent by hand.
        files = (*(path / name for name in STATE_FILES), *path.glob("*.log*"))
        # A link, a pipe or a file of two names is none that an agent has left.
        left = [file for file in files if _is_plain(file)]
        if path.exists() and all(own.lstat().st_uid == uid for own in (path, *left)):
            return
        if self._step(f"{path}: belongs to {user}"):
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
            for own in (path, *left):
                os.chown(own, uid, -1, follow_symlinks=False)

    def settings(self, settings: NodeSettings, user: str) -> None:
        """Keep a copy for a watchdog that cannot use the settings one day."""
        if self._dry_run:
            return
        try:
            os.chown(save_last_good(settings), uid_of(user), -1, follow_symlinks=False)
        except OSError as error:
            raise UserError(f"{settings.state_dir}: {error.strerror}") from None


def _is_plain(file: Path) -> bool:
    try:
        found = file.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _program() -> tuple[str, ...]:
    """Return the command that starts this installation of the agent."""
    script = Path(sys.executable).with_name("qwenctl-node")
    return (str(script),) if script.exists() else (sys.executable, "-m", "gpu_node")


def _present_user() -> str:
    """Return the user of the installed agent; empty if none is installed."""
    try:
        unit = (UNIT_DIR / AGENT).read_text("utf-8")
    except OSError:
        return ""
    found = re.search(r"^User=(\S+)$", unit, re.MULTILINE)
    return found.group(1) if found else ""
