"""``qwenctl-node doctor``: check what the node needs, and change nothing."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from gpu_node.client import NoContact, ProxyClient
from gpu_node.machine.metadata import Metadata, NoMetadata
from gpu_node.machine.nvidia import Nvml
from gpu_node.selfstop.busy import read_spec
from gpu_node.services.docker import DockerRuntime
from gpu_node.settings import STATE_FILES, NodeSettings
from gpu_node.setup.systemd_units import AGENT, DROP_IN, TIMER
from qwenctl.errors import ConfigError
from qwenctl.lib.docker_engine import GPU_ADVICE, knows_gpus
from qwenctl.lib.findings import Finding, fail, ok, warn
from qwenctl.lib.private_file import user_name
from qwenctl.protocol.messages import REPORT_PATH, Report, Spec
from qwenctl.protocol.signing import MAX_SKEW_SECONDS

SMALL, SCARCE = 20 * 2**30, 2 * 2**30
"""Free bytes of a disk below which there is a warning, or a failure."""

ODD_CLOCK = 5.0
"""Seconds of difference between this clock and the proxy's that are worth a warning."""


class _Node:
    """Facts that several checks need."""

    def __init__(self, settings: NodeSettings, unit_dir: Path) -> None:
        self.settings = settings
        self.unit_dir = unit_dir
        self.spec: Spec | None = read_spec(Path(settings.state_dir, "spec.json"))
        try:
            self.secret = settings.read_secret()
            self.no_secret = ""
        except ConfigError as error:
            self.secret, self.no_secret = "", str(error)

    @property
    def user(self) -> str:
        """The user of the installed agent; empty if none is installed."""
        return unit_state(AGENT).get("User", "")


def check(
    settings: NodeSettings, unit_dir: Path = Path("/etc/systemd/system")
) -> Iterator[Finding]:
    """Yield every finding, as it is found."""
    node = _Node(settings, unit_dir)
    parts: tuple[Callable[[_Node], Iterator[Finding]], ...]
    parts = (_secret, _proxies, _docker, _gpus, _disk, _state, _power_off, _role, _units)
    for part in parts:
        try:
            yield from part(node)
        except Exception as error:  # a check that breaks must not hide the others
            name = part.__name__.strip("_")
            found = f"the check itself failed: {type(error).__name__}: {error}"
            yield fail(name, found, "this is a mistake in qwenctl: please report it")


def unit_state(unit: str) -> dict[str, str]:
    """Return a unit's properties; empty where there is no systemd, or no such unit."""
    keys = "LoadState,ActiveState,SubState,UnitFileState,ActiveEnterTimestamp,NRestarts,User"
    try:
        done = subprocess.run(
            ["systemctl", "show", "--property", keys, unit],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found if found.get("LoadState") == "loaded" else {}


def _secret(node: _Node) -> Iterator[Finding]:
    name = "node secret"
    file = node.settings.node_secret_file
    if node.no_secret:
        fix = f"copy the deployment's node secret to {file or 'a file'}, mode 0600"
        yield fail(name, node.no_secret, fix)
        return
    if node.settings.node_secret.get_secret_value():
        yield warn(name, "it is in the settings", "better in node_secret_file")
        return
    found = Path(file).expanduser().stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield fail(name, f"{file} has mode {mode:04o}", f"chmod 0600 {file}")
    elif node.user and found.st_uid != uid_of(node.user):
        yield fail(name, f"{file} is not {node.user}'s", f"chown {node.user} {file}")
    else:
        yield ok(name, f"{file}, mode {mode:04o}")


def _proxies(node: _Node) -> Iterator[Finding]:
    """Send each proxy a report of a boot that it cannot know.

    It refuses that without a trace, but only after it has verified the signature, and its answer is
    signed, too.
    """
    if not node.secret:
        return
    for url in node.settings.proxy_urls:
        name = f"proxy {urlsplit(url).netloc.rpartition('@')[2]}"
        report = Report(
            gpu=node.settings.gpu,
            boot_id=f"doctor-{secrets.token_hex(8)}",
            start_seq=0,
            state="loading",
        )
        client = ProxyClient([url], node.secret)
        asked = time.time()
        try:
            reply = client.send(REPORT_PATH, report)
        except NoContact as reason:
            yield fail(name, str(reason), "is proxy_urls right, is the port open from here?")
            continue
        finally:
            client.close()
        if reply.status == 404:
            yield fail(
                name,
                f"it has no GPU named {node.settings.gpu!r}",
                "`gpu` here must be a GPU's name in the proxy's configuration",
            )
        else:
            yield ok(name, "it accepts our secret, and we its answer")
        skew = (asked + time.time()) / 2 - reply.answer.server_time
        words = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the proxy's"
        if abs(skew) < ODD_CLOCK:
            yield ok("clock", words)
        else:
            bad = fail if abs(skew) > MAX_SKEW_SECONDS else warn
            yield bad("clock", words, "timedatectl set-ntp true")


def _docker(node: _Node) -> Iterator[Finding]:
    name = "Docker"
    containers = [s for s in node.spec.services if s.runtime == "docker"] if node.spec else []
    try:
        with contextlib.closing(DockerRuntime.of(node.settings).client()) as client:
            info = client.info()
    except Exception as error:  # not installed, no SDK, no daemon, no permission: each its own kind
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if containers:
            yield fail(name, words, "install and start Docker; is the user in the group docker?")
        elif node.spec:
            yield ok(name, "not needed: no service is a container")
        else:
            yield ok(name, "not needed so far: the proxy has not said yet what to run")
        return
    yield ok(name, f"version {info.get('ServerVersion')}")
    if node.user and not node.settings.docker_host and not in_docker_group(node.user):
        found = f"the user {node.user} is not in the group docker"
        yield (fail if containers else warn)(name, found, "run `qwenctl-node install` again")
    wants_gpu = any(s.container and s.container.gpus for s in containers)
    if wants_gpu and not knows_gpus(info):
        yield fail(
            "NVIDIA runtime",
            "Docker knows none, and a service wants GPUs",
            GPU_ADVICE,
        )
    elif wants_gpu:
        yield ok("NVIDIA runtime", "Docker has it")
    root = str(info.get("DockerRootDir", ""))
    if Path(root).is_dir():
        yield _free_space(root, "disk of Docker")


def _gpus(_: _Node) -> Iterator[Finding]:
    reading = Nvml().read()
    broken = [f"{gpu.index}: {gpu.error}" for gpu in reading.gpus if gpu.error]
    if broken:
        fix = "nvidia-smi may say more; often a stop and start of the instance mends it"
        yield fail("GPUs", "; ".join(broken), fix)
    elif reading.gpus:
        yield ok("GPUs", ", ".join(gpu.name or gpu.index for gpu in reading.gpus))
    else:
        yield warn("GPUs", reading.note, "without it the reports have no GPU figures")


def _disk(node: _Node) -> Iterator[Finding]:
    place = next(p for p in (Path(node.settings.state_dir), Path("/")) if p.is_dir())
    yield _free_space(str(place), "disk")
    for service in node.spec.services if node.spec else ():
        if service.weights and not Path(service.weights).is_dir():
            yield fail(
                "weights",
                f"{service.name}: there is no directory {service.weights}",
                "mount or download them, or correct `weights` in the proxy's configuration",
            )


def _state(node: _Node) -> Iterator[Finding]:
    """Find files of another user, such as those of an agent that root has tried by hand: neither
    agent nor watchdog can use them."""
    if not node.user or node.user == "root":
        return
    uid = uid_of(node.user)
    directory = Path(node.settings.state_dir)
    if directory.is_dir() and (found := directory.stat()).st_uid != uid:
        words = f"{directory} is not {node.user}'s, but {user_name(found.st_uid)}'s"
        yield fail("state", words, "run `qwenctl-node install` again")
    for file in (Path(node.settings.state_dir, name) for name in STATE_FILES):
        if file.exists() and file.stat().st_uid != uid:
            fix = "run `qwenctl-node install` again"
            yield fail("state", f"{file} is not {node.user}'s", fix)


def _free_space(path: str, name: str) -> Finding:
    free = psutil.disk_usage(path).free
    words = f"{free / 2**30:.1f} GiB free at {path}"
    if free < SCARCE:
        return fail(name, words, "make room: docker image prune, or a larger disk")
    return warn(name, words) if free < SMALL else ok(name, words)


def _power_off(node: _Node) -> Iterator[Finding]:
    name = "self-stop"
    command = node.settings.power_off_command
    if command:
        if shutil.which(command[0]) is None:
            found = f"power_off_command: no program {command[0]}"
            yield fail(name, found, "correct it in the settings")
        else:
            yield ok(name, " ".join(command))
    elif node.settings.cloud == "aws":
        yield ok(name, "powers the operating system off")
    else:
        yield warn(
            name,
            "no power_off_command: nothing stops this instance if the proxy is gone",
            "on Alibaba Cloud: the Python of this program with -m gpu_node.aliyun_stop",
        )


def _role(node: _Node) -> Iterator[Finding]:
    """Find the RAM role by which an instance of Alibaba Cloud stops itself."""
    if node.settings.cloud != "aliyun":
        return
    name = "RAM role"
    try:
        value = Metadata("aliyun", node.settings.metadata_url, timeout=3.0).get(
            "ram/security-credentials/"
        )
    except NoMetadata as error:
        found = f"the metadata service gave no answer: {error}"
        yield fail(name, found, "is this an instance of Alibaba Cloud? else correct `cloud`")
        return
    role = value.text.strip().splitlines()[0] if value and value.text.strip() else ""
    if role:
        yield ok(name, role[:64])
    else:
        fix = "`qwenctl provision` prints the role that it needs"
        yield fail(name, "this instance has none: it cannot stop itself", fix)


def _units(node: _Node) -> Iterator[Finding]:
    if not Path("/run/systemd/system").is_dir():
        yield warn("service", "systemd does not run here", "no watchdog, then, either")
        return
    for unit, name in ((AGENT, "service"), (TIMER, "watchdog")):
        state = unit_state(unit)
        if not state:
            yield fail(name, f"{unit} is not installed", "run `qwenctl-node install`")
        elif state.get("UnitFileState") != "enabled":
            fix = f"systemctl enable --now {unit}"
            yield fail(name, f"{unit} does not start at boot", fix)
        elif state.get("ActiveState") != "active":
            fix = f"journalctl -u {unit}; systemctl start {unit}"
            yield fail(name, f"{unit} is {state.get('ActiveState')}", fix)
        else:
            yield ok(name, f"{unit} is enabled and active")
    processes = [s.name for s in node.spec.services if s.runtime == "process"] if node.spec else []
    if processes and (node.unit_dir / AGENT).exists() and not (node.unit_dir / DROP_IN).exists():
        yield fail(
            "service",
            f"{', '.join(processes)}: no containers, but the unit is made for containers only",
            "run `qwenctl-node install --runs process`",
        )


def uid_of(user: str) -> int:
    """Return the user's id; -1 if there is no such user."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return -1


def in_docker_group(user: str) -> bool:
    try:
        entry, group = pwd.getpwnam(user), grp.getgrnam("docker")
    except KeyError:
        return user == "root"
    return group.gr_gid in os.getgrouplist(user, entry.pw_gid) or entry.pw_uid == 0
