"""``qwenctl-node bake``: make this instance ready for a snapshot, and check that.

Slow steps of a boot are done beforehand: the image is pulled, the weights are there, and the last
spec stays, so that the first boot need not wait for a proxy. State of this instance, or of this boot
of it, is removed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from gpu_node.selfstop.agent_lock import agent_runs
from gpu_node.selfstop.busy import read_spec
from gpu_node.services.docker import DockerRuntime
from gpu_node.services.docker_ownership import (
    GPU_LABEL,
    HASH_LABEL,
    SERVICE_LABEL,
    own_labels,
    unless_missing,
)
from gpu_node.services.image_pull import PullProgress, pull_events
from gpu_node.services.page_cache import MIN_RESERVE, RESERVE_SHARE, WeightFile, weight_files
from gpu_node.settings import OF_THIS_BOOT, NodeSettings
from gpu_node.setup.doctor import unit_state
from gpu_node.setup.systemd_units import AGENT, TIMER
from qwenctl.errors import UserError
from qwenctl.lib.extras import how_to_install
from qwenctl.lib.findings import Finding, Level, fail, ok, warn
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Container, Service, Spec

LITTLE_ROOM = 5 * 2**30
"""Free bytes of a disk below which there is a warning."""

CLOUD_INIT_STATE = ("data", "handlers", "instance", "instances", "scripts", "sem")
"""Below /var/lib/cloud; without them, cloud-init takes the next boot for the first."""

Say = Callable[[str], None]


# ---------------------------------------------------------------- preparing


def bake(settings: NodeSettings, *, clean: bool, say: Say, root: Path = Path("/")) -> None:
    """Bring the instance to what `check` wants. Can be run again at any time.

    Args:
        settings: the agent's.
        clean: also remove the machine's identity.
        say: takes each step.
        root: where ``/etc`` and ``/var`` are.

    Raises:
        UserError: not root, no spec yet, Docker does not answer, an image cannot be pulled.
    """
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if spec is None:
        raise UserError(
            f"there is no spec in {settings.state_dir}: let the agent reach its proxy once"
        )
    if os.geteuid() != 0:
        raise UserError("this must be run as root: sudo qwenctl-node bake")
    containers = [service.container for service in spec.services if service.container]
    docker: Any = _docker(settings) if containers else contextlib.nullcontext()
    with docker as client:
        for container in containers:
            if not unless_missing(client.inspect_image, container.image):
                _pull(client, container, say)
        # From here on it must be quick: a proxy takes an instance without an agent for lost. The
        # watchdog first, which would stop this instance.
        for unit in (TIMER, AGENT):
            if unit_state(unit).get("ActiveState") in ("active", "activating", "reloading"):
                _stop_unit(unit)
                say(f"stopped {unit} (it starts again at the next boot)")
        if agent_runs(Path(settings.state_dir)):
            raise UserError("the agent runs, and systemd has not started it: stop it first")
        timeouts = {service.name: service.stop_timeout for service in spec.services}
        for found in _containers(client, settings) if containers else ():
            name = found["Names"][0].lstrip("/")
            if _starts_at_boot(client, found):
                say(f"{name} runs on: it ends with the instance, and Docker starts it at boot")
                continue
            seconds = timeouts.get(found["Labels"].get(SERVICE_LABEL, ""), 10.0)
            client.stop(found["Id"], timeout=int(seconds + 0.5))
            say(f"stopped the container {name}")
    for file in _own_left_overs(settings):
        file.unlink(missing_ok=True)
        say(f"removed {file}")
    for path, how in identity(root) if clean else ():
        _remove_identity(path)
        say(f"{how} {path}")
    os.sync()


def _stop_unit(unit: str) -> None:
    command = ["systemctl", "stop", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")


@contextlib.contextmanager
def _docker(settings: NodeSettings) -> Iterator[Any]:
    """Connect to Docker; raise its errors as `UserError`."""
    try:
        client = DockerRuntime.of(settings).client()
    except ModuleNotFoundError:
        raise UserError(f"the Docker SDK is missing: {how_to_install('node')}") from None
    except Exception as error:  # docker, requests and OSError have no common ancestor
        raise UserError(f"Docker does not answer: {redacted(str(error))}") from None
    try:
        yield client
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"Docker: {redacted(str(error))}") from None
    finally:
        client.close()


def _pull(client: Any, container: Container, say: Say) -> None:
    name = container.image
    if container.pull == "never":
        raise UserError(f'the image {name} is not here, and pull = "never": load it by hand')
    say(f"pulling {name}")
    progress, said = PullProgress(), 0
    for event in pull_events(client, name):
        if error := event.get("error"):
            raise UserError(f"the image {name} cannot be pulled: {redacted(str(error))[:300]}")
        progress.take(event)
        view = progress.view()
        if view.percent is not None and view.percent >= said + 10:
            said = int(view.percent // 10) * 10
            say(f"  {said} % ({view.text})")


def _containers(client: Any, settings: NodeSettings, **options: Any) -> list[Any]:
    """List this GPU's containers that run, without those that have the label of their image."""
    found = client.containers(filters={"label": f"{GPU_LABEL}={settings.gpu}"}, **options)
    return [
        container
        for container in found
        if (details := unless_missing(client.inspect_container, container["Id"]))
        and GPU_LABEL in (own_labels(client, details) or {})
    ]


def _starts_at_boot(client: Any, found: Any) -> bool:
    """Whether Docker starts the container at boot, unless it was stopped before."""
    policy = client.inspect_container(found["Id"])["HostConfig"]["RestartPolicy"]["Name"]
    return bool(policy == "unless-stopped")


def _own_left_overs(settings: NodeSettings) -> list[Path]:
    """List state and logs that must not be in an image."""
    state = [Path(settings.state_dir, name) for name in OF_THIS_BOOT]
    logs = sorted(Path(settings.log_dir).glob("*.log*")) if settings.log_dir else []
    return [file for file in (*state, *logs) if file.is_file()]


def identity(root: Path = Path("/")) -> list[tuple[Path, str]]:
    """List the files that identify this machine, and what is done with each.

    SSH host keys are listed only where cloud-init is there to replace them.
    """
    machine_id = root / "etc/machine-id"
    paths = [root / "var/lib/dbus/machine-id", root / "var/lib/systemd/random-seed"]
    state: list[Path] = []
    if (root / "etc/cloud/cloud.cfg").exists():
        paths += sorted((root / "etc/ssh").glob("ssh_host_*_key*"))
        state = [root / "var/lib/cloud" / name for name in CLOUD_INIT_STATE]
    paths += [home / ".bash_history" for home in (root / "root", *sorted(root.glob("home/*")))]
    found = [path for path in paths if path.exists() and not path.is_symlink()]
    # A link among the state, instance, points to the directory below instances.
    found += [path for path in state if path.exists() or path.is_symlink()]
    emptied = []
    if machine_id.exists() and machine_id.read_text().strip() not in ("", "uninitialized"):
        emptied = [(machine_id, "emptied")]
    return [*emptied, *((path, "removed") for path in found)]


def _remove_identity(path: Path) -> None:
    try:
        if path.name == "machine-id" and path.parent.name == "etc":
            path.write_text("")  # systemd makes a new id at boot
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror}") from None


# ---------------------------------------------------------------- checking


def check(settings: NodeSettings, root: Path = Path("/")) -> Iterator[Finding]:
    """Find what would hinder a boot from a snapshot of this instance; change nothing."""
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if spec is None:
        yield fail(
            "spec",
            f"none in {settings.state_dir}",
            "let the agent reach its proxy once: then the first boot need not wait for one",
        )
    else:
        names = ", ".join(service.name for service in spec.services) or "nothing to run"
        yield ok("spec", f"{spec.version}: {names}")
    yield from _check_units(spec)
    if spec is not None:
        yield from _check_docker(settings, spec)
        for service in spec.services:
            yield from _check_files(service)
    yield from _check_disks(settings, spec)
    yield from _check_state(settings)
    try:
        found = identity(root)
    except PermissionError as error:
        raise UserError(f"cannot look at {error.filename}: use sudo") from None
    if found:
        paths = ", ".join(str(path) for path, _ in found)
        yield warn(
            "identity",
            f"this machine's own: {paths}",
            "harmless while one instance at a time is made of the image; else bake --clean",
        )
    else:
        yield ok("identity", "none of this machine is left")
    yield warn(
        "secrets",
        "the node secret, registry logins and env_files become part of the image",
        "keep image and snapshot private",
    )


def _check_units(spec: Spec | None) -> Iterator[Finding]:
    if not Path("/run/systemd/system").is_dir():
        yield warn("boot", "systemd does not run here: see to the agent's start yourself")
        return
    wanted = [AGENT, TIMER]
    if spec is not None and any(service.runtime == "docker" for service in spec.services):
        wanted.append("docker.service")
    for unit in wanted:
        state = unit_state(unit).get("UnitFileState", "not installed")
        if state == "enabled":
            yield ok("boot", f"{unit} starts at boot")
        else:
            fix = "qwenctl-node install" if unit in (AGENT, TIMER) else f"systemctl enable {unit}"
            yield fail("boot", f"{unit} is {state}: it does not start at boot", fix)


def _check_docker(settings: NodeSettings, spec: Spec) -> Iterator[Finding]:
    services = [service for service in spec.services if service.container]
    if not services:
        return
    try:
        with _docker(settings) as client:
            for service in services:
                yield from _check_image(client, service)
            made = _containers(client, settings, all=True)
            yield ok(
                "container",
                f"{sum(HASH_LABEL in found['Labels'] for found in made)} made"
                + ("" if made else ": the first boot makes them, which takes a second"),
            )
            for found in _containers(client, settings):
                if not _starts_at_boot(client, found):
                    name = found["Names"][0].lstrip("/")
                    yield fail("container", f"{name} runs", "qwenctl-node bake stops it")
    except UserError as error:
        yield fail("docker", str(error).removeprefix("Docker: "), "systemctl start docker")


def _check_image(client: Any, service: Service) -> Iterator[Finding]:
    assert service.container
    name = service.container.image
    image = unless_missing(client.inspect_image, name)
    if image is None:
        yield fail("image", f"{name} is not here", "qwenctl-node bake pulls it")
    else:
        yield ok("image", f"{name}, {image.get('Size', 0) / 1e9:.1f} GB")
    if service.container.pull == "always":
        found = f'{service.name}: pull = "always" asks the registry at each boot'
        yield warn("image", found, 'set pull = "missing"')


def _check_files(service: Service) -> Iterator[Finding]:
    if service.env_file and not Path(service.env_file).is_file():
        found = f"{service.name}: {service.env_file} is not there"
        yield fail("env_file", found, "put it there, or remove `env_file`")
    if not service.weights:
        yield warn(
            "weights",
            f"{service.name}: the spec does not say where they are",
            "set weights in the proxy's configuration: then they are warmed up while Docker starts",
        )
        return
    root = Path(service.weights)
    files = weight_files(root)
    total = sum(file.size for file in files)
    if not total:
        yield fail("weights", f"{service.name}: nothing in {root}", "download them first")
        return
    if unfinished := next(root.rglob("*.incomplete"), None):
        yield warn("weights", f"a download was not finished: {unfinished}")
    yield ok("weights", f"{root}: {total / 1e9:.1f} GB in {len(files)} files")
    memory = psutil.virtual_memory().total
    room = memory - max(MIN_RESERVE, int(memory * RESERVE_SHARE))
    if total > room:
        yield warn(
            "weights",
            f"only {max(0, room) / 1e9:.1f} GB of them fit into this machine's memory",
            "an instance type with more memory loads them faster",
        )
    user = unit_state(AGENT).get("User", "")
    if user and (file := _unreadable(files, user)):
        yield fail(
            "weights",
            f"the agent's user {user} may not read {file}: they cannot be warmed up",
            f"chmod -R o+rX {root}",
        )


def _unreadable(files: list[WeightFile], user: str) -> Path | None:
    """Return the first file that the user may not read; None also if that cannot be tried."""
    try:
        if os.geteuid() != 0 or pwd.getpwnam(user).pw_uid == 0 or not shutil.which("runuser"):
            return None
    except KeyError:
        return None
    for file in files[:50]:
        command = ["runuser", "-u", user, "--", "test", "-r", str(file.path)]
        if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
            return file.path
    return None


def _check_disks(settings: NodeSettings, spec: Spec | None) -> Iterator[Finding]:
    seen = set()
    paths = ["/", settings.state_dir, settings.log_dir]
    for path in paths + [service.weights for service in (spec.services if spec else ())]:
        try:
            device, free = Path(path).stat().st_dev, psutil.disk_usage(path).free
        except OSError:
            continue
        if not path or device in seen:
            continue
        seen.add(device)
        yield Finding(
            "disk",
            Level.WARN if free < LITTLE_ROOM else Level.OK,
            f"{free / 1e9:.1f} GB free where {path} is",
            "docker image prune; or a larger disk, which can be grown in the cloud",
        )


def _check_state(settings: NodeSettings) -> Iterator[Finding]:
    if agent_runs(Path(settings.state_dir)):
        yield fail("state", "the agent runs, and goes on writing", "qwenctl-node bake")
    elif left := _own_left_overs(settings):
        names = ", ".join(file.name for file in left)
        yield fail("state", f"of this boot: {names}", "qwenctl-node bake removes them")
    else:
        yield ok("state", "nothing of this boot is left but the spec")
