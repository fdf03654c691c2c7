"""The commands of ``qwenctl-node``, without systemd and without root.

Most run in this process; those that replace it, or set its log and signals, are processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gpu_node.setup.commands  # noqa: F401 - `main` imports it when it may no longer read it
from gpu_node.__main__ import main
from gpu_node.selfstop.deadman import DeadMan
from gpu_node.status_file import StatusFile, read_status
from qwenctl.protocol.messages import Report, Service, ServiceState, Spec
from tests.support.metadata import MetadataService
from tests.support.net import free_port
from tests.support.other_user import needs_root, nobody
from tests.support.program import PROGRAM
from tests.support.stand_in_proxy import SECRET, StandInProxy

BOOT = "boot-0001"


class Node:
    """A node's settings in a directory."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.config = directory / "node.toml"
        self.secret = directory / "node.secret"
        self.state, self.logs = directory / "state", directory / "logs"
        self.state.mkdir()
        self.logs.mkdir()
        self.secret.write_text(SECRET + "\n")
        self.secret.chmod(0o600)
        self.settings = {
            "proxy_urls": ["http://127.0.0.1:9"],
            "gpu": "main",
            "node_secret_file": str(self.secret),
            "state_dir": str(self.state),
            "log_dir": str(self.logs),
            "boot_id": BOOT,
        }
        self.set(**settings)

    def set(self, **settings: Any) -> None:
        self.settings |= settings
        self.config.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.settings.items())
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Carry out a command in this process."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([*arguments, "--config", str(self.config)])
        return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())

    def program(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "gpu_node", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr
        return done

    def doctor(self) -> dict[str, dict[str, str]]:
        """The checks by their names."""
        done = self.run("doctor", "--json")
        answer = json.loads(done.stdout)
        assert done.returncode == (0 if answer["ok"] else 1)
        for one in answer["checks"]:
            assert list(one) == ["level", "check", "found", "fix"]  # scripts read them
        assert answer["ok"] == all(one["level"] != "fail" for one in answer["checks"])
        return {one["check"]: one for one in answer["checks"]}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def report(**more: Any) -> Report:
    services = (ServiceState(name="webui", state="ready", port=7860, restarts=2),)
    given = {"state": "ready", "services": services, "boot_id": BOOT, **more}
    return Report(gpu="main", start_seq=1, **given)


def test_settings_that_are_not_there_come_with_the_next_step(node: Node) -> None:
    node.config.unlink()
    said = node.run("status").stderr
    assert f"cannot read {node.config}: No such file or directory; name the settings" in said
    assert "qwenctl provision" in said
    found = node.doctor()["settings"]
    assert found["level"] == "fail"
    assert "--config" in found["fix"]


# ---------------------------------------------------------------- status


def test_status_of_a_node_without_an_agent(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text("#!/bin/sh\nexit 4\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    StatusFile(node.state / "status.json").note(report())
    DeadMan(node.state / "deadman.json", BOOT, 600.0).contact()
    done = node.run("status")
    assert done.returncode == 1
    assert "agent of main: not running" in done.stdout
    assert "no watchdog is installed: nothing stops this instance\n" in done.stdout
    installed = "LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled"
    systemctl.write_text(f"#!/bin/sh\nprintf '{installed}\\n'\n")
    done = node.run("status")
    assert "the watchdog stops this instance in 12 min" in done.stdout
    assert "webui" not in done.stdout  # what a dead agent has said


def test_status_of_a_running_agent(node: Node) -> None:
    StatusFile(node.state / "status.json").note(report(error="one\nsecond"))
    DeadMan(node.state / "deadman.json", BOOT, 600.0).contact()
    with (node.state / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = node.run("status")
        assert shown.returncode == 0
        assert "agent of main: running, for" in shown.stdout
        assert "  webui: ready, port 7860, 2 restarts\n" in shown.stdout
        assert "error: one\n" in shown.stdout
        view = json.loads(node.run("status", "--json").stdout)
    assert (view["state"], view["agent_running"], view["services"][0]["name"]) == (
        "ready",
        True,
        "webui",
    )
    assert 0 <= view["seconds_since_contact"] < 60


def test_status_does_not_take_another_boot_for_this_one(node: Node) -> None:
    StatusFile(node.state / "status.json").note(report(boot_id="boot-0000"))
    with (node.state / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        view = json.loads(node.run("status", "--json").stdout)
    assert (view["state"], view["services"]) == (None, [])


@needs_root
def test_status_for_somebody_who_may_not_read_it(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    with (node.state / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (node.state / "agent.lock").chmod(0o640)
        with nobody(node.directory):
            code = main(["status", "--config", str(node.config)])
    shown = capsys.readouterr()
    assert (code, shown.out) == (1, "")
    assert f"cannot read {node.state / 'agent.lock'}" in shown.err
    assert "sudo" in shown.err


def test_status_before_the_watchdog_has_looked(node: Node) -> None:
    """It would count from its first look, and status is none."""
    done = node.run("status")
    assert "agent of main: not running" in done.stdout
    assert "the watchdog stops" not in done.stdout
    assert list(node.state.iterdir()) == []


def test_the_status_file_spares_the_disk_and_survives_a_full_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "status.json"
    file = StatusFile(path)
    file.note(report())
    first = path.stat().st_mtime_ns, path.stat().st_ino
    file.note(report(uptime=99.0))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == first
    file.note(report(state="loading"))
    assert read_status(path)["state"] == "loading"
    assert read_status(path)["started"] <= time.time()
    (tmp_path / "file").write_text("")
    StatusFile(tmp_path / "file" / "status.json").note(report())
    assert "cannot write" in caplog.text
    for text in ("", "[]", "{"):
        path.write_text(text)
        assert read_status(path) == {}


# ---------------------------------------------------------------- logs


def test_logs_of_a_service(node: Node) -> None:
    (node.logs / "webui.log").write_text("".join(f"line {n}\n" for n in range(300)))
    done = node.program("logs", "webui")
    assert done.stdout.splitlines() == [f"line {n}" for n in range(100, 300)]


@pytest.mark.parametrize("name", ["nothing", "../node", "/etc/passwd"])
def test_logs_of_no_service(node: Node, name: str) -> None:
    (node.logs / "webui.log").write_text("x\n")
    (node.directory / "node.log").write_text("not for you\n")
    done = node.program("logs", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there are: webui" in done.stderr


# ---------------------------------------------------------------- doctor


def test_doctor_with_a_proxy_that_is_well(node: Node) -> None:
    with StandInProxy() as proxy:
        proxy.status = 409  # as a proxy answers to a boot that it does not know
        node.set(proxy_urls=[proxy.url], power_off_command=["sh", "-c", "true"])
        checks = node.doctor()
        assert proxy.hellos == proxy.reports == []
    found = checks[f"proxy 127.0.0.1:{proxy.port}"]
    assert (found["level"], found["found"]) == ("ok", "it accepts our secret, and we its answer")
    for name in ("settings", "node secret", "clock", "self-stop"):
        assert checks[name]["level"] == "ok", checks[name]


def test_doctor_with_another_secret(node: Node) -> None:
    with StandInProxy() as proxy:
        node.set(proxy_urls=[proxy.url])
        node.secret.write_text("another one\n")
        proxy.signs_with = SECRET
        [found] = [c for name, c in node.doctor().items() if name.startswith("proxy ")]
    assert found["level"] == "fail"
    assert "is the node secret the same on both sides?" in found["found"]


def test_doctor_with_a_gpu_that_the_proxy_does_not_know(node: Node) -> None:
    with StandInProxy() as proxy:
        proxy.status = 404
        node.set(proxy_urls=[proxy.url])
        [found] = [c for name, c in node.doctor().items() if name.startswith("proxy ")]
    assert (found["level"], found["found"]) == ("fail", "it has no GPU named 'main'")


@pytest.mark.parametrize(("skew", "level"), [(30.0, "warn"), (4000.0, "fail"), (-4000.0, "fail")])
def test_doctor_with_a_clock_that_is_wrong(node: Node, skew: float, level: str) -> None:
    with StandInProxy() as proxy:
        proxy.clock = lambda: time.time() - skew
        proxy.status = 409
        node.set(proxy_urls=[proxy.url])
        found = node.doctor()["clock"]
    assert found["level"] == level
    assert ("ahead of" if skew > 0 else "behind") in found["found"]
    assert found["fix"] == "timedatectl set-ntp true"


def test_doctor_without_a_proxy_a_safe_secret_or_a_way_out(node: Node) -> None:
    port = free_port()
    node.set(proxy_urls=[f"http://127.0.0.1:{port}"])
    node.secret.chmod(0o644)
    checks = node.doctor()
    assert checks[f"proxy 127.0.0.1:{port}"]["found"].endswith("Connection refused")
    assert checks["node secret"]["fix"] == f"chmod 0600 {node.secret}"
    assert checks["self-stop"]["level"] == "warn"
    node.set(power_off_command=["/no/such/program"])
    node.secret.unlink()
    checks = node.doctor()
    assert "No such file" in checks["node secret"]["found"]
    assert checks["self-stop"]["level"] == "fail"


def test_doctor_where_docker_is_needed(node: Node) -> None:
    node.set(docker_host=f"unix://{node.directory}/docker.sock")
    assert node.doctor()["Docker"]["level"] == "ok"
    service = {"name": "webui", "runtime": "docker", "container": {"image": "x"}}
    spec = {"version": "1", "services": [service]}
    (node.state / "spec.json").write_text(json.dumps(spec))
    assert node.doctor()["Docker"]["level"] == "fail"


def test_doctor_misses_weights(node: Node) -> None:
    service = Service(command=("x",), weights=str(node.directory / "models"))
    (node.state / "spec.json").write_text(Spec(version="1", services=(service,)).model_dump_json())
    assert node.doctor()["weights"]["level"] == "fail"
    (node.directory / "models").mkdir()
    assert "weights" not in node.doctor()


def test_doctor_asks_for_the_role_on_alibaba_cloud(node: Node) -> None:
    with MetadataService("aliyun") as metadata:
        node.set(cloud="aliyun", metadata_url=metadata.url)
        assert "this instance has none" in node.doctor()["RAM role"]["found"]
    assert node.doctor()["RAM role"]["level"] == "fail"


def test_doctor_of_settings_that_cannot_be_used(node: Node) -> None:
    node.config.write_text("gpu = 3\nnode_secret_file = 'x'\n")
    done = node.run("doctor")
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "proxy_urls is missing" in done.stdout


# ---------------------------------------------------------------- install, watchdog, the rest


def test_install_prints_what_it_would_write(node: Node) -> None:
    done = node.run("install", "--print", "--user", "ubuntu", "--runs", "docker")
    assert done.returncode == 0
    assert "# /etc/systemd/system/qwenctl-node.service\n" in done.stdout
    assert "User=ubuntu\n" in done.stdout
    assert f"--config {node.config}\n" in done.stdout
    assert "process-services.conf" not in done.stdout


@pytest.mark.parametrize(
    ("runtimes", "loosened"), [([], True), (["docker"], False), (["docker", "process"], True)]
)
def test_install_goes_by_what_the_proxy_has_said(
    node: Node, runtimes: list[str], loosened: bool
) -> None:
    if runtimes:
        services = [
            {"name": f"s{n}", "runtime": runtime, "command": ["x"], "container": {"image": "x"}}
            for n, runtime in enumerate(runtimes)
        ]
        spec = {"version": "1", "services": services}
        (node.state / "spec.json").write_text(json.dumps(spec))
    assert ("process-services.conf" in node.run("install", "--print").stdout) == loosened


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, ["--user", "a b"], "is no name of a Linux user"),
        ({}, ["--user", "x\nExecStart=/bin/evil"], "is no name of a Linux user"),
        ({"state_dir": "state"}, [], "state_dir: state must be an absolute path"),
        ({"node_secret_file": "~/secret"}, [], "must be an absolute path"),
    ],
)
def test_install_refuses(
    node: Node, settings: dict[str, str], arguments: list[str], says: str
) -> None:
    node.set(**settings)
    done = node.run("install", "--print", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr


def test_only_ec2_without_a_command_of_its_own_is_powered_off(node: Node) -> None:
    def powers_off(**settings: Any) -> bool:
        node.set(**settings)
        return "systemctl poweroff" in node.run("install", "--print").stdout

    assert not powers_off()
    assert powers_off(cloud="aws")
    assert not powers_off(cloud="aws", power_off_command=["true"])
    assert not powers_off(cloud="aliyun", power_off_command=[])


def test_the_watchdog_as_a_command(node: Node) -> None:
    DeadMan(node.state / "deadman.json", BOOT, 600.0).contact()
    fired = node.directory / "fired"
    node.set(power_off_command=["touch", str(fired)])
    done = node.program("watchdog")
    assert (done.returncode, fired.exists()) == (0, False)
    assert "this instance stops itself in" in done.stderr


def test_settings_that_cannot_be_read(node: Node) -> None:
    node.config.unlink()
    for run, command in (
        (node.run, "install"),
        (node.run, "status"),
        (node.program, "watchdog"),
    ):
        done = run(command)
        assert done.returncode == 2
        assert "cannot read" in done.stderr


@pytest.mark.parametrize(
    "command", ["install", "uninstall", "status", "logs", "doctor", "bake", "watchdog"]
)
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_the_commands_of_qwenctl_lead_there(node: Node) -> None:
    done = subprocess.run(
        [PROGRAM, "node", "status", "--json", "--config", str(node.config)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["agent_running"] is False


def test_run_is_what_no_command_means(node: Node) -> None:
    node.secret.unlink()
    for arguments in (["run"], []):
        done = node.program(*arguments)
        assert (done.returncode, "node_secret_file: cannot read" in done.stderr) == (2, True)
