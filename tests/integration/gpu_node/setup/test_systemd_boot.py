"""The units under a real systemd: installed, started, killed, watched over, upgraded, removed."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpu_node.setup.systemd_units import HARDENING
from qwenctl.protocol.messages import Activity, Service, Spec
from tests.integration.gpu_node.setup.booted_machine import CannotBoot, Machine
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.stand_in_proxy import SECRET, StandInProxy

PROGRAM = str(ROOT / "tests" / "support" / "service_program.py")
NODE = str(Path(sys.prefix, "bin", "qwenctl-node"))
AGENT, WATCHDOG = "qwenctl-node.service", "qwenctl-node-watchdog.service"
TIMER = "qwenctl-node-watchdog.timer"
STATE = "/var/lib/qwenctl-node"
FIRED = f"{STATE}/powered-off"

pytestmark = pytest.mark.slow

DOCKER_THAT_TAKES_FOR_EVER = """\
[Service]
Type=notify
ExecStart=/bin/sleep infinity
TimeoutStartSec=infinity
"""

# The first line drops the minutes of the real one.
SOON = "[Timer]\nOnBootSec=\nOnBootSec=2s\nOnUnitInactiveSec=2s\nAccuracySec=100ms\n"


@pytest.fixture
def proxy() -> Iterator[StandInProxy]:
    with StandInProxy() as proxy:
        yield proxy


@contextmanager
def boot(directory: Path, units: dict[str, str]) -> Iterator[Machine]:
    """A machine of our own, or a skipped test."""
    try:
        machine = Machine(directory, units)
    except CannotBoot as reason:
        pytest.skip(f"this machine cannot boot a systemd of its own: {reason}")
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    units = {"docker.service": DOCKER_THAT_TAKES_FOR_EVER, f"{TIMER}.d/soon.conf": SOON}
    with boot(tmp_path, units) as machine:
        machine.run("groupadd", "--force", "docker", check=True)
        yield machine


def install(
    machine: Machine, proxy: StandInProxy, *options: str, secret: bool = True, **settings: Any
) -> str:
    """Write the settings and run the installer; what it says."""
    settings = {
        "proxy_urls": [proxy.url],
        "gpu": "main",
        "node_secret_file": "/etc/qwenctl/node.secret",
        "power_off_command": ["/bin/sh", "-c", f"echo off >> {FIRED}"],
        **settings,
    }
    machine.path("/etc/qwenctl/node.toml").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    if secret:
        machine.path("/etc/qwenctl/node.secret").write_text(SECRET + "\n")
    return machine.run(NODE, "install", *options, check=True).stdout


def process_spec(home: str = "/home/qwenctl", **more: Any) -> Spec:
    port = free_port()
    service = Service(
        command=(sys.executable, PROGRAM, str(port), "--env", f"{home}/env.json"), port=port
    )
    return Spec(version="1", services=(service,), heartbeat=0.5, **more)


def age_the_contact(machine: Machine, name: str = "deadman.json") -> None:
    """As if a proxy had been heard last, or the watchdog had looked first, a long time ago."""
    file = machine.path(f"{STATE}/{name}")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "last": 0.0}))


def watchdog_runs(machine: Machine) -> int:
    """When the watchdog was started last, on the machine's monotonic clock."""
    return int(machine.property(WATCHDOG, "InactiveEnterTimestampMonotonic") or 0)


def wait_watchdog(machine: Machine, rounds: int) -> None:
    """Wait until the timer has had the watchdog run so often to its end."""
    for _ in range(rounds):
        before = watchdog_runs(machine)
        machine.wait(lambda b=before: watchdog_runs(machine) > b, "the timer does not fire", 60)  # type: ignore[misc]


def test_a_node_from_its_installation_to_its_end(machine: Machine, proxy: StandInProxy) -> None:
    proxy.spec = process_spec()
    said = install(machine, proxy)
    assert "useradd" in said
    assert "usermod --append --groups docker qwenctl" in said
    assert machine.run("id", "-nG", "qwenctl").stdout.split() == ["qwenctl", "docker"]

    # It runs although Docker is still starting, and so does a service of the runtime "process",
    # which writes to its home.
    proxy.wait_report(lambda report: report.state == "ready", 60)
    assert machine.property("docker.service", "ActiveState") == "activating"
    assert machine.path("/home/qwenctl/env.json").stat().st_uid != 0
    assert machine.property(AGENT, "User") == "qwenctl"
    assert machine.property(AGENT, "ProtectSystem") == "full"
    for unit in (AGENT, TIMER):
        assert machine.property(unit, "UnitFileState") == "enabled"
    secret = machine.path("/etc/qwenctl/node.secret").stat()
    assert (oct(secret.st_mode & 0o777), secret.st_uid != 0) == ("0o600", True)

    # Once more: nothing to do, and nobody is disturbed.
    pid = machine.property(AGENT, "MainPID")
    assert install(machine, proxy).splitlines() == [f"{AGENT}: active; see `qwenctl-node status`"]
    assert machine.property(AGENT, "MainPID") == pid

    # What somebody has left who tried the agent as root is handed over.
    notice = machine.path(f"{STATE}/notice.json")
    notice.touch(0o600)
    checks = json.loads(machine.run(NODE, "doctor", "--json").stdout)["checks"]
    [found] = [check for check in checks if check["check"] == "state"]
    assert (found["level"], found["found"]) == ("fail", f"{STATE}/notice.json is not qwenctl's")
    assert f"{STATE}: belongs to qwenctl\n" in install(machine, proxy)
    assert notice.stat().st_uid == secret.st_uid

    # Killed, it comes back and goes on within the same boot.
    proxy.hellos.clear()
    machine.run("systemctl", "kill", "--signal", "KILL", "--kill-who", "main", AGENT, check=True)
    proxy.wait(lambda p: p.hellos, 60)
    assert machine.property(AGENT, "NRestarts") == "1"
    proxy.forget()
    proxy.wait_report(lambda report: report.state == "ready", 60)

    # Only root may see it, and root sees it.
    shown = machine.run(NODE, "status", "--json", check=True).stdout
    status = json.loads(shown)
    assert status["agent_running"]
    assert (status["state"], [one["name"] for one in status["services"]]) == ("ready", ["webui"])
    assert status["seconds_since_contact"] < 60
    assert status["units"][TIMER]["ActiveState"] == "active"
    checks = json.loads(machine.run(NODE, "doctor", "--json").stdout)["checks"]
    failed = [check for check in checks if check["level"] == "fail"]
    assert failed == [], failed
    assert {"node secret", "service", "watchdog", "clock"} <= {check["check"] for check in checks}

    # The upgrade to a unit for containers alone keeps user and state.
    said = install(machine, proxy, "--runs", "docker")
    assert "10-process-services.conf: removed" in said
    assert "useradd" not in said
    assert machine.property(AGENT, "ProtectSystem") == "strict"
    assert machine.property(AGENT, "TasksMax") == "512"
    assert machine.path(f"{STATE}/spec.json").exists()
    machine.wait(lambda: machine.property(AGENT, "ActiveState") == "active", "it does not start")

    # Gone, but for what is the user's.
    machine.run(NODE, "uninstall", check=True)
    assert not machine.path(f"/etc/systemd/system/{AGENT}").exists()
    assert machine.run("systemctl", "is-active", AGENT).stdout.strip() == "inactive"
    assert machine.path(f"{STATE}/spec.json").exists()
    assert machine.path("/etc/qwenctl/node.toml").exists()
    assert machine.run(NODE, "uninstall", check=True).stdout == "nothing was installed\n"


class Generating:
    """A service that says how many generations it runs; nobody's child."""

    def __init__(self) -> None:
        self.active = 1
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = json.dumps({"active": outer.active}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Generating:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_watchdog_stops_the_instance_for_an_agent_that_is_dead(
    machine: Machine, proxy: StandInProxy
) -> None:
    proxy.spec = Spec(version="1", services=(), heartbeat=0.5)
    install(machine, proxy, "--runs", "docker")
    proxy.wait(lambda p: p.reports, 60)
    with Generating() as service:
        wait_watchdog(machine, 2)
        assert not machine.path(FIRED).exists()
        assert machine.property(WATCHDOG, "Result") == "success"

        # The agent dies for good while a generation runs that nobody but the service knows of.
        machine.run("systemctl", "stop", AGENT, check=True)
        port = service.server.server_address[1]
        spec = Spec(
            version="2",
            services=(Service(command=("x",), port=port, activity=Activity(path="/active")),),
        )
        machine.path(f"{STATE}/spec.json").write_text(spec.model_dump_json())
        wait_watchdog(machine, 1)
        assert service.asked == 0, "it asks before it is time"
        assert "no agent runs" in machine.journal()
        age_the_contact(machine)
        machine.wait(lambda: service.asked, "the service is not asked")
        wait_watchdog(machine, 1)
        assert not machine.path(FIRED).exists()
        assert "work goes on: webui: 1 running" in machine.journal()

        service.active = 0
        machine.wait(machine.path(FIRED).exists, "it does not fire", 90)
        assert machine.property(WATCHDOG, "Result") == "success"
        # As long as the instance is on, it is tried again.
        machine.wait(
            lambda: len(machine.path(FIRED).read_text().split()) > 1, "it fires once only", 90
        )


def test_an_instance_whose_secret_never_comes_goes_off(
    machine: Machine, proxy: StandInProxy
) -> None:
    """Not at once, however long it has been up; its clock is that of the machine around it."""
    said = install(machine, proxy, secret=False)
    assert f"the agent waits for /etc/qwenctl/node.secret; then: systemctl start {AGENT}" in said
    assert f"stops this instance in 12 min; to have longer: systemctl stop {TIMER}" in said
    wait_watchdog(machine, 2)
    assert not machine.path(FIRED).exists()
    assert "no agent runs; this instance stops itself in" in machine.journal()
    assert machine.property(AGENT, "ActiveState") == "inactive"
    age_the_contact(machine, "watchdog.json")
    machine.wait(machine.path(FIRED).exists, "it does not fire", 90)


def test_an_instance_whose_settings_are_broken_goes_off(
    machine: Machine, proxy: StandInProxy
) -> None:
    proxy.spec = Spec(version="1", services=(), heartbeat=0.5)
    install(machine, proxy, "--runs", "docker")
    proxy.wait(lambda p: p.reports, 60)
    copy = machine.path(f"{STATE}/settings.json").stat()
    assert (oct(copy.st_mode & 0o777), copy.st_uid != 0) == ("0o600", True)
    config = machine.path("/etc/qwenctl/node.toml")
    config.write_text(config.read_text() + "wrong = 1\n")
    machine.run("systemctl", "restart", AGENT)
    wait_watchdog(machine, 1)
    assert "wrong: unknown key" in machine.journal()
    assert not machine.path(FIRED).exists()
    age_the_contact(machine)
    machine.wait(machine.path(FIRED).exists, "it does not fire", 90)


def test_on_ec2_the_machine_goes_off_by_itself(machine: Machine, proxy: StandInProxy) -> None:
    """The agent alone, which is not root, has systemd power off what it runs on."""
    proxy.spec = Spec(version="1", services=(), heartbeat=0.5, dead_man=5.0)
    install(machine, proxy, cloud="aws", metadata_url="http://127.0.0.1:9", power_off_command=[])
    proxy.wait(lambda p: p.reports, 60)
    proxy.close()
    machine.wait_off(120)


def test_on_ec2_the_watchdog_powers_off_for_an_agent_that_hangs(
    machine: Machine, proxy: StandInProxy
) -> None:
    proxy.spec = Spec(version="1", services=(), heartbeat=0.5)
    install(machine, proxy, cloud="aws", metadata_url="http://127.0.0.1:9", power_off_command=[])
    proxy.wait(lambda p: p.reports, 60)
    machine.run("systemctl", "kill", "--signal", "STOP", "--kill-who", "main", AGENT, check=True)
    age_the_contact(machine)
    # Well before systemd kills an agent that does not end: once it goes on, it hears the signal.
    machine.wait_off(90)


def test_under_the_hardening_the_agent_sees_what_is_in_the_page_cache(tmp_path: Path) -> None:
    script = (
        "import os; from gpu_node.services.page_cache import resident_bytes; p = '/var/lib/probe/x'; "
        "open(p, 'wb').write(b'1' * 1000000); "
        "print('resident:', resident_bytes(os.open(p, os.O_RDONLY), 0, 1000000))"
    )
    unit = (
        f"[Service]\nType=oneshot\nUser=daemon\nStateDirectory=probe\n{HARDENING}"
        f'ExecStart={sys.executable} -c "{script}"\n'
    )
    with boot(tmp_path, {"probe.service": unit}) as machine:
        machine.run("systemctl", "start", "probe.service", check=True)
        assert "resident: 1000000\n" in machine.journal()
