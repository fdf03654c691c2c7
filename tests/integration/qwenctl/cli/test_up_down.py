"""`qwenctl up` and `down` with a real instance of the local provider, mostly without a proxy.

The service is started by the test, as an image that starts its WebUI by itself would: without a
proxy the agent is not told what to run, and readiness is probed by the command line.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import URI_DEFAULT, HTTPServer

from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.config.providers import make_provider
from qwenctl.core.events import EventKind
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Observed, Phase
from qwenctl.errors import ExitCode
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import INSTANCE
from tests.support.net import free_port
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer
from tests.unit.qwenctl.clouds.contract import wait_for


class Machine:
    """One deployment with a GPU of the local provider, and the program to run on it."""

    def __init__(self, directory: Path, url: str, deployment: str, client: Any) -> None:
        self.directory, self.deployment = directory, deployment
        self.service_port = free_port()
        self.path = directory / "qwenctl.toml"
        self.path.write_text(
            f'deployment = "{deployment}"\nstate_dir = "{directory}/st"\nredis_url = "{url}"\n'
            f'[proxy]\nlisten = "127.0.0.1:{free_port()}"\n'
            '[gpu.main]\nidle_timeout = "1m"\nboot_estimate = 5\n'
            "[gpu.main.timing]\nretry = 0.5\n"
            "[gpu.main.local]\nboot_seconds = 0.3\nstop_seconds = 0.1\n"
            f'[[gpu.main.service]]\ncommand = ["false"]\nport = {self.service_port}\n'
        )
        self.store = Store(client, deployment)
        self.client = client

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *args],
            cwd=self.directory,
            env={**inherited(), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        program = self.start(*args, **env)
        try:
            stdout, stderr = program.communicate(timeout=60)
        finally:
            program.kill()
        return subprocess.CompletedProcess(args, program.returncode, stdout, stderr)

    @property
    def phase(self) -> Phase:
        return self.store.snapshot("main").phase

    @property
    def starts(self) -> int:
        events = self.store.events("main")
        return sum(e.fields.get("verb") == "start" for e in events)

    def left_at(self, phase: Phase) -> None:
        """Two hours ago a proxy brought it so far, and was stopped: the record says what was."""
        store = Store(self.client, self.deployment, now=lambda: time.time() - 7200)
        lock, _, _ = store.acquire("main", "proxy", 60.0)
        assert lock
        path = [Phase.OFF, Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY]
        path = [*path, Phase.DRAINING] if phase is Phase.DRAINING else path[: path.index(phase) + 1]
        for source, to in pairwise(path):
            move = Move(to, "test", Guard.NONE)
            store.transition("main", lock, source, move, drain=0, idle_timeout=1)
            if to is Phase.STARTING:
                store.record_call("main", lock, to, "start", request_id="r1")
            if to is Phase.LOADING:
                verdict, seq = store.hello(
                    Hello(gpu="main", boot_id="boot-1234"), "nonce-1234567890"
                )
                assert verdict == "ok"
                ready = phase is not Phase.LOADING
                report = Report(
                    gpu="main",
                    boot_id="boot-1234",
                    start_seq=seq,
                    state="ready" if ready else "loading",
                )
                assert store.report(report, "nonce-0987654321", heartbeat=5.0)[0] == "ok"
        store.release_lock("main", lock)
        assert self.phase is phase
        assert not self.store.snapshot("main").leader

    def run_outside(self) -> None:
        """Have the instance run, unseen."""
        self.provider.start()
        wait_for(self.provider, Observed.RUNNING)

    @property
    def provider(self) -> Any:
        config: Config = load_config(str(self.path), env={})
        return make_provider("main", config.gpu["main"], config)

    @contextlib.contextmanager
    def service(self) -> Iterator[None]:
        """The WebUI, on its port."""
        with HTTPServer(port=self.service_port) as server:
            server.expect_request(URI_DEFAULT).respond_with_data()
            yield


@pytest.fixture
def machine(
    tmp_path: Path, valkey: ValkeyServer, deployment: str, client: Any
) -> Iterator[Machine]:
    machine = Machine(tmp_path, valkey.url, deployment, client)
    yield machine
    machine.provider.stop()


def fails(done: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last


def test_up_and_down(machine: Machine) -> None:
    with machine.service():
        done = machine.run("up", "--for", "1h", "--because", "demo")
        assert done.returncode == 0, done.stderr
        # Nobody listens at the proxy's address.
        assert f"main is ready: http://127.0.0.1:{machine.service_port} " in done.stdout
        assert "Starting the instance: done in" in done.stderr
        assert "No proxy runs" in done.stderr
        assert "qwenctl serve" in done.stderr
        assert machine.phase is Phase.READY
        [pin] = machine.store.snapshot("main").leases
        # From when it was ready, for exactly so long.
        assert pin.expiry - machine.store.snapshot("main").now == pytest.approx(3600, abs=10)
        assert pin.reason == "demo"

        again = machine.run("up", "--json")
        told = json.loads(again.stdout)
        assert (told["outcome"], told["proxy_runs"]) == ("ready", False)
        assert told["url"] == f"http://127.0.0.1:{machine.service_port}"
        own = f"open       http://127.0.0.1:{machine.service_port} "
        assert own in machine.run("status").stdout
        assert told["shortened_from_seconds"] is None  # without --for it only gets longer

        shorter = machine.run("up", "--for", "1m")
        assert "shortens your earlier `qwenctl up`" in shorter.stderr
        assert "another 59 min" in shorter.stderr

        done = machine.run("down", "--because", "lunch")
    assert (done.returncode, done.stdout) == (0, "main is off\n")
    assert "draining" in done.stderr
    assert machine.provider.describe().state.value == "stopped"
    assert "lunch" in machine.run("why").stdout
    starts = [e for e in machine.store.events("main") if e.fields.get("verb") == "start"]
    assert len(starts) == 1


def test_down_waits_for_running_work_and_names_it(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
        machine.store.demand(
            "main",
            "request:a",
            30,
            reason="request",
            actor="a",
            inflight="inflight:p1",
            inflight_ttl=60,
        )
        down = machine.start("down")
        try:
            assert down.stderr is not None
            assert "waiting for requests in flight through p1" in down.stderr.readline()
            assert machine.phase is Phase.READY
            machine.store.touch("main", "inflight:p1", 0, [], actor="p1")
            stdout, _ = down.communicate(timeout=30)
        finally:
            down.kill()
    assert (down.returncode, stdout) == (0, "main is off\n")


def test_down_now_cuts(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
        machine.store.demand(
            "main",
            "request:a",
            30,
            reason="request",
            actor="a",
            inflight="inflight:p1",
            inflight_ttl=60,
        )
        assert machine.run("down", "--now").stdout == "main is off\n"


def test_down_tells_who_needs_it_again(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
        down = machine.start("down")
        try:
            assert down.stderr is not None
            while "draining" not in down.stderr.readline():
                pass
            machine.store.demand("main", "request:eve", 30, reason="request", actor="eve")
            _, stderr = down.communicate(timeout=30)
        finally:
            down.kill()
        assert down.returncode == ExitCode.ERROR
        assert "needed again by a visitor (eve)" in stderr
        assert machine.run("down", "--now").returncode == 0


@pytest.mark.parametrize(
    ("fault", "code"), [("no_capacity", ExitCode.NO_CAPACITY), ("denied", ExitCode.DENIED)]
)
def test_a_refused_start_has_its_own_exit_code_and_leaves_nothing_behind(
    machine: Machine, fault: str, code: ExitCode
) -> None:
    done = machine.run("up", QWENCTL_GPU__MAIN__LOCAL__FAIL=fault)
    fails(done, code, fault)
    assert machine.phase is Phase.OFF
    assert machine.store.snapshot("main").leases == ()
    done = machine.run("up", "--json", QWENCTL_GPU__MAIN__LOCAL__FAIL=fault)
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["outcome"]) == (code, code, "failed")


def test_retry_goes_on_until_the_timeout(machine: Machine) -> None:
    done = machine.run(
        "up", "--retry", "--timeout", "3s", QWENCTL_GPU__MAIN__LOCAL__FAIL="no_capacity"
    )
    fails(done, ExitCode.NO_CAPACITY)
    attempts = [e for e in machine.store.events("main") if e.fields.get("to") == "failed"]
    assert len(attempts) >= 2


def test_a_bad_instance_is_stopped_before_up_gives_up(machine: Machine) -> None:
    done = machine.run("up", QWENCTL_GPU__MAIN__TIMING__BOOT="1s")  # nothing listens, nobody calls
    fails(done, ExitCode.FAILED, "agent_silent")
    assert machine.phase is Phase.OFF
    assert machine.provider.describe().state.value == "stopped"


def test_the_timeout_leaves_the_wake_running(machine: Machine) -> None:
    done = machine.run("up", "--timeout", "1s", QWENCTL_GPU__MAIN__LOCAL__FAIL="boot_hangs")
    fails(done, ExitCode.TIMEOUT, "qwenctl down", "no proxy runs")
    logs = machine.directory / "st" / "instances" / machine.deployment / "main" / "logs"
    assert str(logs) in done.stderr
    assert logs.is_dir()
    assert machine.phase is Phase.STARTING
    assert machine.store.snapshot("main").leases


def test_ctrl_c_leaves_the_wake_running_and_says_so(machine: Machine) -> None:
    up = machine.start("up", QWENCTL_GPU__MAIN__LOCAL__BOOT_SECONDS="60")
    try:
        assert up.stderr is not None
        while "Starting the instance" not in up.stderr.readline():
            pass
        up.send_signal(signal.SIGINT)
        _, stderr = up.communicate(timeout=30)
    finally:
        up.kill()
    assert up.returncode == ExitCode.INTERRUPTED
    assert "goes on waking" in stderr
    assert "Traceback" not in stderr
    assert machine.phase is Phase.STARTING
    assert machine.store.snapshot("main").leases
    assert machine.store.snapshot("main").leader == ""  # the lock was given back


def test_a_down_of_somebody_else_ends_the_waiting(machine: Machine) -> None:
    up = machine.start("up")  # nobody answers on the service's port, so it waits
    try:
        assert up.stderr is not None
        while "Booting" not in up.stderr.readline():
            pass
        down = machine.run("down")
        _, stderr = up.communicate(timeout=30)
    finally:
        up.kill()
    assert down.stdout == "main is off\n"
    assert up.returncode == ExitCode.ERROR
    assert "somebody said `qwenctl down`" in stderr


def test_no_wait_makes_the_call_where_no_controller_runs(machine: Machine) -> None:
    done = machine.run("up", "--no-wait")
    assert done.returncode == 0, done.stderr
    assert "on its way" in done.stdout
    starts = [e for e in machine.store.events("main") if e.fields.get("verb") == "start"]
    assert len(starts) == 1


def test_block_drains_and_waits(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
        done = machine.run("block", "--for", "1h")
        assert done.stdout == "main is blocked for 1 h\nmain is off\n"
        fails(machine.run("up"), ExitCode.BLOCKED)


@pytest.mark.parametrize("command", [["down"], ["down", "--now"], ["block", "--for", "1h"]])
def test_what_nobody_has_looked_at_is_looked_at_and_stopped(
    machine: Machine, command: list[str]
) -> None:
    machine.provider.start()
    wait_for(machine.provider, Observed.RUNNING)
    unknown = "main's state is not known: the cloud has not been asked yet"
    for look in ("status", "why"):
        said = machine.run(look).stdout
        assert said.splitlines()[0] == unknown
        assert "main is off" not in said
    done = machine.run(*command)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "main is off"), done.stderr
    assert machine.provider.describe().state is Observed.STOPPED
    events = machine.store.events("main")
    assert not [e for e in events if e.fields.get("name", "").startswith("adopted:")]
    assert machine.run("status").stdout.startswith("main is off")
    again = machine.run("down")
    assert (again.returncode, again.stdout) == (0, "main is off already\n")


def test_down_that_does_not_wait_begins_the_stop_of_what_it_finds(machine: Machine) -> None:
    machine.provider.start()
    wait_for(machine.provider, Observed.RUNNING)
    assert machine.run("down", "--dry-run").stdout.startswith("would ask the cloud whether main")
    told = json.loads(machine.run("down", "--dry-run", "--json").stdout)
    assert told["would_stop"] is None
    done = machine.run("down", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "main is going off\n")
    wait_for(machine.provider, Observed.STOPPED)


def test_down_leaves_alone_what_is_to_be_ignored_and_says_so(machine: Machine) -> None:
    machine.provider.start()
    wait_for(machine.provider, Observed.RUNNING)
    done = machine.run("down", QWENCTL_GPU__MAIN__FOUND_RUNNING="ignore")
    fails(done, ExitCode.ERROR, "found_running = ignore")
    assert machine.provider.describe().state is Observed.RUNNING


def test_a_provider_that_cannot_be_made_leaves_no_demand_behind(machine: Machine) -> None:
    fails(machine.run("up", QWENCTL_GPU__MAIN__PROVIDER="aliyun"), ExitCode.USAGE, "region")
    assert machine.store.snapshot("main").leases == ()


BEGUN = [Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING]


@pytest.mark.parametrize("args", [(), ("--no-wait",)])
@pytest.mark.parametrize("left", BEGUN)
def test_what_stopped_while_nobody_looked_is_started(
    machine: Machine, left: Phase, args: tuple[str, ...]
) -> None:
    machine.left_at(left)
    before = machine.starts
    told = json.loads(machine.run("up", "--dry-run", "--json").stdout)
    unsure = left in (Phase.READY, Phase.DRAINING)
    assert told["would_start"] is (None if unsure else True)
    with machine.service():
        done = machine.run("up", *args)
    assert done.returncode == 0, done.stderr
    assert machine.starts == before + 1
    assert machine.provider.describe().state in (Observed.STARTING, Observed.RUNNING)
    assert machine.phase is Phase.READY or args
    assert "waking it from here" in done.stderr or args
    assert "Starting the instance" in done.stderr or args  # it shows how far it is


@pytest.mark.parametrize("args", [(), ("--no-wait",)])
@pytest.mark.parametrize("left", [Phase.OFF, *BEGUN])
def test_what_runs_although_nobody_looked_goes_on_running(
    machine: Machine, left: Phase, args: tuple[str, ...]
) -> None:
    """Nobody was there to hear its agent: that is no reason to take it for lost."""
    machine.run_outside()
    machine.left_at(left)
    before = machine.starts
    with machine.service():
        done = machine.run("up", *args)
    assert done.returncode == 0, done.stderr
    assert machine.starts == before
    assert machine.provider.describe().state is Observed.RUNNING
    assert machine.phase in BEGUN[:-1]
    assert machine.phase is Phase.READY or args
    assert ("is ready" in done.stdout) == (machine.phase is Phase.READY)


@pytest.mark.parametrize("left", [Phase.BOOTING, Phase.LOADING])
def test_a_boot_that_nobody_followed_gets_its_time(machine: Machine, left: Phase) -> None:
    machine.run_outside()
    machine.left_at(left)
    up = machine.start("up")
    try:
        assert up.stderr is not None
        while (line := up.stderr.readline()) and "Booting" not in line and "Loading" not in line:
            pass
        threading.Event().wait(3)  # some looks
        assert up.poll() is None
        with machine.service():
            stdout, stderr = up.communicate(timeout=60)
    finally:
        up.kill()
    assert up.returncode == 0, stderr
    assert "main is ready" in stdout
    assert machine.provider.describe().state is Observed.RUNNING


@pytest.fixture
def ecs() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


def cloud(ecs: FakeEcs) -> dict[str, str]:
    """The environment in which the GPU is an instance of that cloud."""
    table = {
        "REGION": "cn-hangzhou",
        "INSTANCE_ID": INSTANCE,
        "ENDPOINT": ecs.endpoint,
        "PROTOCOL": "http",
    }
    return {f"QWENCTL_GPU__MAIN__ALIYUN__{key}": value for key, value in table.items()} | {
        "QWENCTL_GPU__MAIN__PROVIDER": "aliyun",
        "ALIBABA_CLOUD_ACCESS_KEY_ID": ecs.key.id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ecs.key.secret,
        "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def test_a_cloud_that_may_not_be_asked_ends_up_at_once(machine: Machine, ecs: FakeEcs) -> None:
    ecs.cloud.add()
    ecs.fail("DescribeInstances", "error", code="Forbidden.RAM", status=403, times=inf)
    for _ in range(2):  # the second finds the failure of the first
        done = machine.run("up", **cloud(ecs))  # ends within its 60 s
        fails(done, ExitCode.DENIED, "denied", "Forbidden.RAM")
        assert done.stderr.count("Forbidden.RAM") == 1, done.stderr
        assert machine.store.snapshot("main").leases == ()
    fails(machine.run("down", **cloud(ecs)), ExitCode.ERROR, "cannot be asked", "Forbidden.RAM")
    ecs.heal()
    assert machine.run("down", **cloud(ecs)).returncode == 0
    assert machine.phase is Phase.OFF


@pytest.mark.parametrize("args", [(), ("--no-wait",)])
def test_what_may_not_be_looked_at_is_not_called_ready(
    machine: Machine, ecs: FakeEcs, args: tuple[str, ...]
) -> None:
    ecs.cloud.add()
    machine.left_at(Phase.READY)
    ecs.fail("DescribeInstances", "error", code="Forbidden.RAM", status=403, times=inf)
    done = machine.run("up", *args, **cloud(ecs))
    fails(done, ExitCode.DENIED, "denied", "Forbidden.RAM")
    assert machine.store.snapshot("main").leases == ()


def test_a_cloud_instance_whose_agent_was_never_heard_of_is_warned_of(
    machine: Machine, ecs: FakeEcs
) -> None:
    instance = ecs.cloud.add(start_seconds=0.3, stop_seconds=0.3)
    done = machine.run("up", "--no-wait", **cloud(ecs))
    assert done.returncode == 0, done.stderr
    assert instance.starts == 1
    assert "stops itself" not in done.stderr
    assert "never becomes ready and is stopped by nobody" in done.stderr
    machine.store.note("main", EventKind.HELLO, boot_id="b1")
    assert "stops itself" in machine.run("up", "--no-wait", **cloud(ecs)).stderr


def test_a_stopped_service_is_not_said_to_stay_so(machine: Machine) -> None:
    machine.left_at(Phase.READY)
    done = machine.run("restart", "--stop")
    assert done.returncode == 0, done.stderr
    assert "until the instance or the agent starts again; `qwenctl block` keeps" in done.stdout
    assert "block" not in machine.run("restart").stdout


def test_what_is_recorded_is_not_presented_as_what_is(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
    assert "ready" in machine.run("status").stdout
    for command in ("status", "why"):
        assert "ago, not verified: no proxy runs)" in machine.run(command).stdout
    machine.provider.stop()
    wait_for(machine.provider, Observed.STOPPED)
    status = json.loads(machine.run("status", "--json").stdout)["gpus"]["main"]
    assert (status["phase"], status["verified"]) == ("ready", False)
    assert status["as_of"] <= status["now"]


def test_another_config_with_the_same_names_does_not_take_over_the_record(
    machine: Machine,
) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
    assert machine.run("down").returncode == 0
    other = machine.directory / "cloud.toml"
    text = machine.path.read_text().partition("[gpu.main.local]")[0]
    text = text.replace("[gpu.main]\n", '[gpu.main]\nprovider = "aliyun"\n')
    other.write_text(
        f'{text}[gpu.main.aliyun]\nregion = "cn-hangzhou"\ninstance_id = "i-abc123"\n'
        '[[gpu.main.service]]\ncommand = ["false"]\nport = 7860\n'
    )
    shown = machine.run("status", "--config", str(other))
    assert shown.returncode == 0, shown.stderr
    assert "aliyun, not asked yet (on record is another instance: local)" in shown.stdout
    assert "aliyun says" not in shown.stdout
    assert "last wake" not in shown.stdout
    assert "last wake" in machine.run("status").stdout


def test_hints_name_the_gpu_where_there_are_several(machine: Machine) -> None:
    assert machine.run("block", "--no-wait").returncode == 0
    fails(machine.run("up"), ExitCode.BLOCKED, "`qwenctl unblock` lifts it")
    with machine.path.open("a") as file:
        file.write(f'[gpu.big]\n[[gpu.big.service]]\ncommand = ["false"]\nport = {free_port()}\n')
    fails(
        machine.run("up", "--gpu", "main"), ExitCode.BLOCKED, "`qwenctl unblock --gpu main` lifts"
    )


def test_doctor_blames_no_agent_that_has_nobody_to_report_to(machine: Machine) -> None:
    with machine.service():
        assert machine.run("up").returncode == 0
        said = machine.run("doctor").stdout
    assert "no proxy does that its agent could report to" in said
    assert "journalctl" not in said


def test_logs_say_why_there_are_none(machine: Machine) -> None:
    said = machine.run("logs").stderr
    assert said.startswith("no log lines: no proxy runs that the node could send them to")


def test_a_missing_choice_is_one_error(machine: Machine) -> None:
    done = machine.run("permissions")
    assert done.returncode == ExitCode.USAGE
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "aliyun" in line
