"""The local provider with real machines, agents and services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwenctl.clouds.base import Denied, NoCapacity, Provider
from qwenctl.clouds.local.provider import LocalProvider
from qwenctl.clouds.local.settings import LocalConfig
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.core.phase import Observed
from qwenctl.protocol.messages import Service, Spec
from tests.support.net import free_port
from tests.support.stand_in_proxy import SECRET, StandInProxy
from tests.support.waiting import until
from tests.unit.qwenctl.clouds.contract import ProviderContract, wait_for

NOBODY = "http://127.0.0.1:9"
FAST = LocalConfig(boot_seconds=0.2, stop_seconds=0.2)


def lines(provider: LocalProvider, name: str) -> int:
    file = provider.directory / name
    return len(file.read_text().splitlines()) if file.exists() else 0


def processes_of(directory: Path) -> list[psutil.Process]:
    """The machine, its agent and its services: all that carry the directory's name."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(word.startswith(str(directory)) for word in words):
            found.append(process)
    return found


Make = Callable[..., LocalProvider]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)

    def new(config: LocalConfig = FAST, url: str = NOBODY, **more: Any) -> LocalProvider:
        more = {"node_secret_file": secret, **more}
        return LocalProvider(
            gpu="main", config=config, state_dir=tmp_path / "instances", proxy_urls=[url], **more
        )

    yield new
    for process in processes_of(tmp_path / "instances"):
        process.kill()


@pytest.fixture
def proxy() -> Iterator[StandInProxy]:
    with StandInProxy() as server:
        port = free_port()
        command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))
        server.spec = Spec(
            version="1", services=(Service(command=command, port=port),), heartbeat=0.3
        )
        yield server


class TestContract(ProviderContract):
    @pytest.fixture
    def provider(self, make: Make) -> Provider:
        return make()

    def count_starts(self, provider: Provider) -> int:
        assert isinstance(provider, LocalProvider)
        return lines(provider, "starts.log")

    def count_stops(self, provider: Provider) -> int:
        assert isinstance(provider, LocalProvider)
        return lines(provider, "stops.log")


def test_the_machine_runs_an_agent_that_gets_its_services_ready(
    make: Make, proxy: StandInProxy
) -> None:
    provider = make(url=proxy.url)
    boot_id = provider.start().request_id
    ready = proxy.wait_report(lambda r: r.state == "ready")
    assert ready.boot_id == proxy.hellos[0].boot_id == boot_id
    assert 0.2 <= ready.uptime < 15
    assert (provider.directory / "logs" / "webui.log").exists()
    provider.stop()
    wait_for(provider, Observed.STOPPED)
    assert proxy.reports[-1].state == "stopping"
    until(lambda: not processes_of(provider.directory), 8.0)
    second = provider.start().request_id
    assert second != boot_id
    proxy.wait(lambda p: p.hellos[-1].boot_id == second)


def test_an_inline_secret_is_on_no_command_line(make: Make, proxy: StandInProxy) -> None:
    provider = make(url=proxy.url, node_secret_file=None, node_secret=SECRET)
    provider.start()
    proxy.wait_report(lambda r: r.state == "ready")
    ours = processes_of(provider.directory)
    assert len(ours) >= 3
    assert not [p for p in ours if SECRET in " ".join(p.cmdline())]
    files = [f for f in provider.directory.rglob("*") if f.is_file()]
    assert not [f for f in files if SECRET in f.read_text(errors="replace")]


def test_starts_from_several_processes_end_with_one_machine(make: Make, tmp_path: Path) -> None:
    provider = make()
    script = (
        "import sys; from pathlib import Path\n"
        "from qwenctl.clouds.local.settings import LocalConfig\n"
        "from qwenctl.clouds.local.provider import LocalProvider\n"
        f"p = LocalProvider(gpu='main', config=LocalConfig(boot_seconds=0.2), state_dir=Path({str(tmp_path / 'instances')!r}),"
        f" proxy_urls=[{NOBODY!r}], node_secret_file=Path({str(tmp_path / 'secret')!r}))\n"
        "sys.stdin.readline(); print(p.start())\n"
    )
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    time.sleep(0.8)  # all of them wait at the line; should one be late, the test only gets easier
    boots = set()
    for caller in callers:
        assert caller.stdin
        caller.stdin.write("go\n")
        caller.stdin.flush()
    for caller in callers:
        boots.add(caller.communicate(timeout=10)[0].strip())
    assert len(boots) == 1
    wait_for(provider, Observed.RUNNING)
    machines = [
        p for p in processes_of(provider.directory) if "qwenctl.clouds.local.machine" in p.cmdline()
    ]
    assert len(machines) == 1
    assert lines(provider, "starts.log") == 1


def test_the_machine_outlives_who_started_it_and_is_stopped_by_another(
    make: Make, proxy: StandInProxy, tmp_path: Path
) -> None:
    script = (
        "import os, signal; from pathlib import Path\n"
        "from qwenctl.clouds.local.settings import LocalConfig\n"
        "from qwenctl.clouds.local.provider import LocalProvider\n"
        f"LocalProvider(gpu='main', config=LocalConfig(boot_seconds=0.5, stop_seconds=0), state_dir=Path({str(tmp_path / 'instances')!r}),"
        f" proxy_urls=[{proxy.url!r}], node_secret_file=Path({str(tmp_path / 'secret')!r})).start()\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    starter = subprocess.run([sys.executable, "-c", script], start_new_session=True)
    assert starter.returncode == -signal.SIGKILL
    provider = make()
    assert provider.describe().state is Observed.STARTING
    proxy.wait_report(lambda r: r.state == "ready")
    provider.stop()
    wait_for(provider, Observed.STOPPED)


@pytest.mark.parametrize("whom", ["machine", "group"])
def test_kill_9_of_the_machine_is_stopped_and_leaves_nothing(
    whom: str, make: Make, proxy: StandInProxy
) -> None:
    provider = make(url=proxy.url)
    provider.start()
    proxy.wait_report(lambda r: r.state == "ready")
    pid = json.loads((provider.directory / "status.json").read_text())["pid"]
    (os.kill if whom == "machine" else os.killpg)(pid, signal.SIGKILL)
    seen = wait_for(provider, Observed.STOPPED)
    assert seen.reason == "the instance died"
    until(lambda: not processes_of(provider.directory), 8.0)
    provider.start()
    wait_for(provider, Observed.RUNNING)


def test_the_process_id_alone_does_not_make_it_alive(make: Make) -> None:
    provider = make()
    provider.start()
    wait_for(provider, Observed.RUNNING)
    provider.stop()
    wait_for(provider, Observed.STOPPED)
    file = provider.directory / "status.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "state": "running", "pid": os.getpid()}))
    assert provider.describe().state is Observed.STOPPED
    provider.stop()  # would end this test's process
    assert lines(provider, "stops.log") == 1


def test_a_machine_whose_starter_died_too_early_records_itself(make: Make, tmp_path: Path) -> None:
    provider = make(LocalConfig(boot_seconds=0.2, stop_seconds=0))
    boot_id = "orphan-0001"
    provider.directory.mkdir(parents=True)
    provider._spawn(boot_id)
    wait_for(provider, Observed.RUNNING)
    # A second one, for which nobody wrote a record either, gives way.
    second = psutil.Process(provider._spawn("orphan-0002"))
    until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE, 8.0)
    assert json.loads((provider.directory / "status.json").read_text())["boot_id"] == boot_id
    provider.stop()
    wait_for(provider, Observed.STOPPED)


def test_a_killed_agent_is_started_again(make: Make, proxy: StandInProxy) -> None:
    provider = make(url=proxy.url)
    provider.start()
    proxy.wait_report(lambda r: r.state == "ready")
    agent = next(p for p in processes_of(provider.directory) if "gpu_node" in p.cmdline())
    agent.kill()
    proxy.wait(lambda p: len(p.hellos) == 2)
    assert proxy.hellos[0].boot_id == proxy.hellos[1].boot_id
    proxy.forget()
    proxy.wait_report(lambda r: r.state == "ready")


def test_the_dead_mans_switch_turns_the_machine_off(make: Make) -> None:
    provider = make(dead_man=0.7)
    provider.start()
    seen = wait_for(provider, Observed.STOPPED)
    assert "switched itself off" in seen.reason
    until(lambda: not processes_of(provider.directory), 8.0)


def test_faults(make: Make) -> None:
    for fail, error in (("no_capacity", NoCapacity), ("denied", Denied)):
        provider = make(LocalConfig(fail=fail))  # type: ignore[arg-type]
        with pytest.raises(error):
            provider.start()
        assert provider.describe().state is Observed.STOPPED
        assert lines(provider, "starts.log") == 0


def test_a_boot_that_hangs_can_be_stopped(make: Make) -> None:
    provider = make(LocalConfig(boot_seconds=0.1, stop_seconds=0, fail="boot_hangs"))
    provider.start()
    time.sleep(0.8)
    assert provider.describe().state is Observed.STARTING
    provider.stop()
    wait_for(provider, Observed.STOPPED)


def test_an_instance_that_dies_takes_everything_along(make: Make, proxy: StandInProxy) -> None:
    config = LocalConfig(boot_seconds=0.1, fail="dies_after", dies_after=2.5)
    provider = make(config, url=proxy.url)
    provider.start()
    proxy.wait_report(lambda r: r.state == "ready")
    assert provider.describe().state is Observed.RUNNING
    assert wait_for(provider, Observed.STOPPED).reason == "the instance died"
    until(lambda: not processes_of(provider.directory), 8.0)


def test_calls_are_quick(make: Make) -> None:
    provider = make()
    began = time.monotonic()
    provider.start()
    started = time.monotonic() - began
    began = time.monotonic()
    for _ in range(200):
        provider.describe()
    described = (time.monotonic() - began) / 200
    assert started < 0.3
    assert described < 0.003


def test_an_unwritable_state_directory_is_one_sentence(tmp_path: Path) -> None:
    from qwenctl.clouds.base import Transient

    (tmp_path / "file").write_text("in the way")
    provider = LocalProvider(
        gpu="main", config=FAST, state_dir=tmp_path / "file", proxy_urls=[NOBODY], node_secret="x"
    )
    assert provider.describe().state is Observed.STOPPED
    with pytest.raises(Transient, match="cannot start the local instance"):
        provider.start()


def test_the_whole_way_from_a_configuration(tmp_path: Path, proxy: StandInProxy) -> None:
    config = Config.model_validate(
        {
            "state_dir": str(tmp_path),
            "node_secret": SECRET,
            "proxy": {"public_url": proxy.url},
            "gpu": {"main": {"local": {"boot_seconds": "100ms", "stop_seconds": 0}}},
        }
    )
    provider = make_provider("main", config.gpu["main"], config)
    try:
        provider.start()
        assert proxy.wait_report(lambda r: r.state == "ready").gpu == "main"
        provider.stop()
        wait_for(provider, Observed.STOPPED)
    finally:
        for process in processes_of(tmp_path / "instances"):
            process.kill()


def test_the_machine_explains_itself() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "qwenctl.clouds.local.machine", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--boot-seconds" in shown
    assert "example:" in shown
