"""Render the systemd units of the node.

The agent's unit is made for an agent that only talks: to the proxy, to Docker, to its services over
HTTP. A service of the runtime ``process`` is a child of the agent, though, and lives under the same
rules. Where there may be such services a drop-in, `LOOSENED`, lifts those that would break them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwenctl.lib.systemd import HARDENING as COMMON_HARDENING
from qwenctl.lib.systemd import command, escape, quote

AGENT = "qwenctl-node.service"
WATCHDOG = "qwenctl-node-watchdog.service"
TIMER = "qwenctl-node-watchdog.timer"
UNITS = (AGENT, WATCHDOG, TIMER)
DROP_IN = f"{AGENT}.d/10-process-services.conf"


@dataclass(frozen=True)
class Node:
    """Values in the units of one node."""

    program: tuple[str, ...]
    """The agent's program, such as ``/opt/qwenctl/bin/qwenctl-node``."""
    python: str
    """The Python that has it, such as ``/opt/qwenctl/bin/python``."""
    config: str
    """The settings' file."""
    user: str
    secret_file: str
    state_dir: str
    log_dir: str
    power_off: bool
    """Whether the operating system is powered off when no proxy was heard for too long."""
    processes: bool
    """Whether services of the runtime ``process`` may run."""


def render(node: Node) -> dict[str, str]:
    """Return every file: its path below ``/etc/systemd/system``, its text."""
    files = {AGENT: _agent(node), WATCHDOG: _watchdog(node), TIMER: _TIMER}
    if node.processes:
        files[DROP_IN] = LOOSENED + (_AS_ROOT if node.user == "root" else "")
    return files


HARDENING = f"""\
{COMMON_HARDENING}# mincore: which parts of the weights are in the page cache already.
SystemCallFilter=@system-service mincore
# No PrivateDevices and no list of devices: the GPUs' figures need /dev/nvidia*, which may appear only
# after this has started. The user may not read disks anyway.
"""

LOOSENED = """\
# Services of the runtime "process" run as children of the agent, in its cgroup: they write where
# their models and their home are, start as many tasks as they need, and use the GPU as they like.
# If all services are containers: `qwenctl-node install --runs docker` removes this file.
[Service]
# Makes /dev/nvidia-uvm, which CUDA would have a setuid program make; NoNewPrivileges forbids that.
ExecStartPre=-+/bin/sh -c '! command -v nvidia-modprobe >/dev/null || nvidia-modprobe -c 0 -u'
ProtectSystem=full
ProtectHome=no
PrivateTmp=no
ProtectProc=default
TasksMax=infinity
OOMScoreAdjust=0
RestrictNamespaces=no
RestrictRealtime=no
RestrictAddressFamilies=
SystemCallFilter=
RemoveIPC=no
UMask=0022
"""

_AS_ROOT = """\
# Root without capabilities may not even read the files of others.
CapabilityBoundingSet=~
"""

_TIMER = f"""\
[Unit]
Description=Looks each minute whether the qwenctl agent is in charge

[Timer]
# By the monotonic clock: it runs on whatever happens to the time of day.
OnBootSec=1min
OnUnitInactiveSec=1min
AccuracySec=5s
Unit={WATCHDOG}

[Install]
WantedBy=timers.target
"""


def _agent(node: Node) -> str:
    return f"""\
[Unit]
Description=qwenctl agent: runs this GPU's services and reports to the proxy
# Early: not after Docker, so that weights are read into the page cache while Docker starts, and not
# after network-online, for the agent tries until it gets through.
After=network.target
Wants=docker.service
StartLimitIntervalSec=0
ConditionPathExists={escape(node.secret_file)}

[Service]
User={node.user}
ExecStart={command([*node.program, "run", "--config", node.config])}
{_power_off(node)}Restart=always
RestartSec=10
# Containers are Docker's children: no restart of the agent touches them.
KillMode=mixed
TimeoutStopSec=100
{_directories(node)}WorkingDirectory={escape(node.state_dir)}
# No MemoryMax: the weights that it reads into the page cache would count.
TasksMax=512
OOMScoreAdjust=-500
# A service that the kernel kills for want of memory must not take the agent with it.
OOMPolicy=continue
{HARDENING}
[Install]
WantedBy=multi-user.target
"""


def _watchdog(node: Node) -> str:
    return f"""\
[Unit]
Description=Stops this instance if no qwenctl agent is in charge of it

[Service]
Type=oneshot
User={node.user}
ExecStart={command([node.python, "-m", "gpu_node.watchdog", "--config", node.config])}
SuccessExitStatus=70
{_power_off(node)}TimeoutStartSec=5min
{_directories(node)}MemoryMax=256M
OOMScoreAdjust=-500
# Its own words are worth a line, that it was started once more is not.
SyslogLevel=warning
LogLevelMax=notice
{HARDENING}"""


def _power_off(node: Node) -> str:
    if not node.power_off:
        return ""
    return (
        # "+": as root, whatever the agent's user.
        "# The exit code says that no proxy was heard for too long.\n"
        """ExecStopPost=+/bin/sh -c 'if [ "$$EXIT_STATUS" = 70 ]; then systemctl poweroff; fi'\n"""
    )


def _directories(node: Node) -> str:
    """Return where it may write; systemd makes the directories below its own."""
    lines = []
    modes = []
    for setting, parent, path in (
        ("StateDirectory", "/var/lib/", node.state_dir),
        ("LogsDirectory", "/var/log/", node.log_dir),
    ):
        inside = path.removeprefix(parent)
        if (
            inside != path
            and re.fullmatch(r"[A-Za-z0-9._-]+", inside)
            and inside not in (".", "..")
        ):
            lines.append(f"{setting}={inside}")
            if setting == "StateDirectory":  # whoever may read a file may lock it
                modes.append("StateDirectoryMode=0700")
        else:
            lines.append(f"ReadWritePaths={quote(path)}")
    return "".join(f"{line}\n" for line in (*lines, *modes))
