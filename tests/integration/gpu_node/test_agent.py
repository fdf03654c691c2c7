"""The agent as a real process, with real services, against a real HTTP server that signs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qwenctl.protocol.messages import Activity, Command, Readiness, Service
from tests.support.agent import Start, agents, service, spec
from tests.support.metadata import MetadataService
from tests.support.net import free_port
from tests.support.stand_in_proxy import SECRET, StandInProxy

pytestmark = pytest.mark.fast


@pytest.fixture
def proxy() -> Iterator[StandInProxy]:
    with StandInProxy() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, proxy: StandInProxy) -> Iterator[Start]:
    with agents(tmp_path, proxy.url) as make:
        yield make


def test_hello_then_run_then_ready_and_heartbeats(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    stamp = tmp_path / "listening"
    proxy.spec = spec(service("--say", "loading the model", "--load", "0.3", "--stamp", str(stamp)))
    agent = start()

    proxy.wait_report(lambda r: r.state == "ready")
    states = [report.state for report in proxy.reports]
    assert proxy.hellos[0].boot_id == "boot-0001"
    assert proxy.hellos[0].gpu == "main"
    assert states == ["loading"] * (len(states) - 1) + ["ready"]
    assert len(states) >= 2
    ready = proxy.reports[-1]
    assert (ready.start_seq, ready.spec_version, ready.error) == (7, "1", "")
    assert [s.state for s in ready.services] == ["ready"]
    assert "webui: loading the model" in [line for r in proxy.reports for line in r.log]
    assert ready.resources.memory_total
    # Probes start 50 ms apart: the proxy hears of it well within the readiness interval of 1 s.
    assert proxy.arrivals[-1] - float(stamp.read_text()) < 0.5

    seen = len(proxy.reports)
    proxy.wait(lambda p: len(p.reports) >= seen + 3)
    assert 0.2 < proxy.arrivals[-1] - proxy.arrivals[-2] < 0.6
    assert (tmp_path / "logs" / "webui.log").read_text() == "loading the model\n"
    assert agent.terminate() == 0


def test_a_service_sees_none_of_our_settings(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    seen = tmp_path / "env.json"
    proxy.spec = spec(service("--env", str(seen), env={"MODEL": "small"}))
    start(NODE_SECRET=SECRET)
    proxy.wait_report(lambda r: r.state == "ready")
    env = json.loads(seen.read_text())
    assert env["MODEL"] == "small"
    assert [key for key in env if key.startswith("QWENCTL_")] == ["QWENCTL_NODE_OWNER"]
    assert SECRET not in seen.read_text()


def test_progress_lines_reach_the_proxy_at_a_bounded_rate(
    start: Start, proxy: StandInProxy
) -> None:
    script = (
        "import sys, time\n"
        "for i in range(0, 101):\n"
        "    sys.stdout.write(f'\\rLoading safetensors checkpoint shards: {i:3d}% Completed | x/y')\n"
        "    sys.stdout.flush(); time.sleep(0.01)\n"
        "print()\n"
        'print(\'QWENCTL_PROGRESS {"phase": "warm-up", "percent": 5, "text": "graphs"}\')\n'
        "time.sleep(60)\n"
    )
    proxy.spec = spec(Service(command=(sys.executable, "-c", script)), heartbeat=30.0)
    start()
    last = proxy.wait_report(lambda r: r.progress.phase == "warm-up")
    assert (last.progress.percent, last.progress.text) == (5, "graphs")
    weights = [r.progress.percent for r in proxy.reports if r.progress.phase == "weights"]
    assert len(weights) >= 3
    assert weights == sorted(weights)
    gaps = [b - a for a, b in zip(proxy.arrivals[2:], proxy.arrivals[3:])]
    assert min(gaps) > 0.1
    assert len(proxy.reports) <= 15


def test_a_crash_is_started_again_and_a_loop_of_them_is_given_up(
    start: Start, proxy: StandInProxy
) -> None:
    script = "import sys; print('CUDA out of memory'); sys.exit(3)"
    proxy.spec = spec(Service(command=(sys.executable, "-c", script), max_restarts=1))
    agent = start()
    failed = proxy.wait_report(lambda r: r.state == "failed")
    assert "exit code 3" in failed.error
    assert "CUDA out of memory" in failed.error
    assert failed.services[0].state == "failed"
    assert failed.services[0].restarts == 1
    assert any(r.services[0].state == "crashed" for r in proxy.reports if r.services)
    # It goes on telling so, for a proxy that was not there.
    seen = len(proxy.reports)
    proxy.wait(lambda p: len(p.reports) >= seen + 2)
    assert proxy.reports[-1].state == "failed"
    assert agent.terminate() == 0


def test_a_program_that_is_not_there_is_named(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(Service(command=("no-such-program",), max_restarts=9))
    start()
    failed = proxy.wait_report(lambda r: r.state == "failed")
    assert "no program 'no-such-program'" in failed.error
    assert failed.services[0].restarts == 0  # no retry would help


def test_a_stranger_on_its_port_is_not_taken_for_the_service(
    start: Start, proxy: StandInProxy
) -> None:
    webui = service()
    with socket.create_server(("127.0.0.1", webui.port)):
        proxy.spec = spec(webui)
        start()
        told = proxy.wait_report(lambda r: "in use" in r.error)
        assert f"webui: port {webui.port} is in use by another program" in told.error
    proxy.wait_report(lambda r: r.state == "ready")  # once it is free


def test_a_crash_kills_what_the_service_left_in_its_group(
    start: Start, proxy: StandInProxy
) -> None:
    webui = service("--child", max_restarts=0)
    proxy.spec = spec(webui)
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    leader = next(p for p in agent.mine() if p.pid == os.getpgid(p.pid))
    assert len(agent.mine()) == 2
    leader.kill()
    assert "killed by SIGKILL" in proxy.wait_report(lambda r: r.state == "failed").error
    agent.wait_gone()


def test_sigterm_reports_stopping_and_leaves_nothing(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(
        service("--child", name="one", stop_timeout=0.5),
        service("--stubborn", name="two", stop_timeout=0.5),
        service("--runaway", name="three"),
    )
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    assert len(agent.mine()) == 5
    before = time.monotonic()
    assert agent.terminate() == 0
    assert time.monotonic() - before < 3.0
    assert proxy.reports[-1].state == "stopping"
    assert agent.mine() == []
    assert "Traceback" not in agent.log


def test_sigterm_lets_a_service_finish(start: Start, proxy: StandInProxy, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = (
        "import signal, sys, time, pathlib\n"
        f"def end(*_): time.sleep(0.5); pathlib.Path({str(done)!r}).write_text('yes'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)\n"
    )
    # A shell between us and the program ends at once; the program still gets its time.
    proxy.spec = spec(
        Service(command=("sh", "-c", f'{sys.executable} -c "$0"; true', script), stop_timeout=5.0)
    )
    agent = start()
    proxy.wait_report(lambda r: any("up" in line for line in r.log))
    assert agent.terminate() == 0
    assert done.read_text() == "yes"


def test_kill_9_of_the_agent_leaves_no_service(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service("--child"))
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    assert len(agent.mine()) == 2
    agent.process.kill()
    agent.wait_gone()


def test_the_next_agent_kills_what_slipped_out(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service("--runaway"))
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    runaway = next(p for p in agent.mine() if "time.sleep" in " ".join(p.cmdline()))
    agent.process.kill()
    agent.process.wait()
    assert runaway.is_running()
    proxy.forget()
    second = start()
    proxy.wait_report(lambda r: r.state == "ready")
    assert not runaway.is_running() or runaway.status() == psutil.STATUS_ZOMBIE
    assert "earlier agent left behind" in second.log


def test_only_one_agent_in_a_state_directory(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec()
    start()
    proxy.wait(lambda p: p.hellos)
    second = start()
    assert second.process.wait(10) == 2
    assert "another agent runs" in second.log


def test_dead_man_fires_without_contact(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service(), dead_man=1.0)
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    proxy.status = 500
    silent_since = time.monotonic()
    assert agent.process.wait(10) == 70
    assert 0.6 < time.monotonic() - silent_since < 5.0
    assert agent.mine() == []
    assert "stops itself" in agent.log


def test_dead_man_fires_when_there_never_was_contact(start: Start, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    agent = start(
        [f"http://127.0.0.1:{free_port()}"],
        DEAD_MAN="0.8",
        POWER_OFF_COMMAND=json.dumps(["touch", str(stopped)]),
    )
    assert agent.process.wait(10) == 70
    assert stopped.exists()
    assert "Connection refused" in agent.log


@pytest.mark.parametrize("path", ["/metrics", "/active"])
def test_dead_man_waits_for_running_work(
    path: str, start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    active = tmp_path / "active"
    active.write_text("2")
    activity = Activity(path=path, metrics=("x_running",) if path == "/metrics" else ())
    proxy.spec = spec(service("--active", str(active), activity=activity), dead_man=0.8)
    agent = start()
    assert proxy.wait_report(lambda r: r.active > 0).active == 2
    proxy.status = 503
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(2.5)
    active.write_text("0")
    assert agent.process.wait(5) == 70


def test_dead_man_counts_on_over_a_restart_of_the_agent(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    nobody = [f"http://127.0.0.1:{free_port()}"]
    record = tmp_path / "state" / "deadman.json"

    def let_pass(seconds: float) -> None:
        """As if that time had passed since the record was written."""
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "last": content["last"] - seconds}))

    first = start(nobody, DEAD_MAN="60")
    while "no contact" not in first.log:
        assert first.process.poll() is None
        time.sleep(0.05)
    first.process.kill()
    first.process.wait()
    let_pass(60)
    # An agent that comes back late asks first: the proxy may be there after all.
    proxy.spec = spec(dead_man=60)
    second = start(DEAD_MAN="60")
    proxy.wait(lambda p: len(p.reports) >= 3)
    assert second.terminate() == 0
    # The contact was written down, so the count began anew; now nobody is there.
    let_pass(50)
    third = start(nobody, DEAD_MAN="60")
    with pytest.raises(subprocess.TimeoutExpired):
        third.process.wait(1.0)
    third.process.kill()
    third.process.wait()
    let_pass(60)
    assert start(nobody, DEAD_MAN="60").process.wait(15) == 70


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_an_hour_wrong_works_and_is_named(
    hours: int, start: Start, proxy: StandInProxy
) -> None:
    proxy.spec = spec(service())
    proxy.clock = lambda: time.time() + 3600 * hours
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    direction = "behind" if hours > 0 else "ahead of"
    about_it = [line for line in agent.log.splitlines() if "clock" in line]
    assert len(about_it) == 1
    assert f"the node's clock is 3600 s {direction} the proxy's" in about_it[0]
    assert "timedatectl" in about_it[0]


def test_an_answer_without_our_signature_is_ignored(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    proxy.signs_with = "somebody else's secret"
    agent = start()
    proxy.wait(lambda p: p.attempts >= 3)
    assert proxy.reports == []
    assert agent.mine() == []
    assert "not signed with this node's secret" in agent.log
    assert SECRET not in agent.log
    proxy.signs_with = SECRET
    proxy.wait_report(lambda r: r.state == "ready")


def test_a_replayed_answer_is_ignored(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    proxy.commands = [Command(verb="drain")]
    seen = len(proxy.reports)
    proxy.wait(lambda p: len(p.reports) > seen)
    proxy.replays = proxy.last_answer  # the one that says drain, signed rightly, for another nonce
    # Take it back: a new version makes the node run again.
    proxy.wait(lambda p: p.attempts > seen + 2)
    proxy.replays = None
    proxy.spec = spec(service(), version="2")
    proxy.forget()
    proxy.wait_report(lambda r: r.state == "ready" and r.spec_version == "2")
    drain = next(line for line in agent.log.splitlines() if "command" in line)
    assert "drain" in drain
    assert agent.log.count("drain") == 1, "the replayed command was carried out"
    assert "not signed" in agent.log


def test_a_changed_spec_restarts_only_what_changed(start: Start, proxy: StandInProxy) -> None:
    kept, changed, removed = service(name="kept"), service(name="changed"), service(name="removed")
    proxy.spec = spec(kept, changed, removed)
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")

    def pids() -> dict[int, int]:
        return {int(p.cmdline()[2]): p.pid for p in agent.mine()}

    before = pids()
    changed = changed.model_copy(update={"env": {"A": "b"}})
    added = service(name="added", port=removed.port)  # takes the port that becomes free
    proxy.spec = spec(kept, changed, added, version="2")
    ready = proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready")
    assert [s.name for s in ready.services] == ["kept", "changed", "added"]
    assert [s.restarts for s in ready.services] == [0, 0, 0]
    after = pids()
    assert after[kept.port] == before[kept.port]
    assert after[changed.port] != before[changed.port]
    assert after[added.port] != before[removed.port]
    assert len(after) == 3


def test_commands(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service("--say", "first words"))
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    (before,) = agent.mine()

    proxy.commands = [Command(verb="restart-service", service="webui")]
    proxy.wait_report(lambda r: r.services[0].state == "starting" and r.state == "loading")
    before.wait(5)
    proxy.forget()
    proxy.wait_report(lambda r: r.state == "ready")
    assert agent.mine() != [before]

    proxy.forget()
    proxy.commands = [Command(verb="collect-logs")]
    collected = proxy.wait_report(lambda r: r.log)
    assert list(collected.log).count("webui: first words") == 2

    proxy.commands = [Command(verb="drain")]
    proxy.wait_report(lambda r: r.state == "stopping" and r.services[0].state == "stopped")
    assert agent.mine() == []
    assert agent.process.poll() is None


def test_a_proxy_that_forgot_us_gets_another_hello_and_services_run_on(
    start: Start, proxy: StandInProxy
) -> None:
    proxy.spec = spec(service())
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    (before,) = agent.mine()
    proxy.hello_again = True
    proxy.wait(lambda p: len(p.hellos) == 2)
    proxy.forget()
    proxy.wait_report(lambda r: r.state == "ready")
    assert agent.mine() == [before]


def test_a_spot_interruption_is_reported_at_once(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service(), heartbeat=600.0)
    with MetadataService("aws") as metadata:
        start(CLOUD="aws", METADATA_URL=metadata.url)
        proxy.wait_report(lambda r: r.state == "ready")
        assert not any(report.interruption for report in proxy.reports)
        metadata.announce(120, "terminate")
        # No heartbeat is due for ten minutes.
        told = proxy.wait_report(lambda r: r.interruption, 30).interruption
    assert told is not None
    assert told.action == "terminate"
    assert 60 < told.seconds_left <= 121


@pytest.mark.parametrize("seconds", [-5, -3600])
def test_a_notice_from_before_this_boot_is_none(
    start: Start, proxy: StandInProxy, seconds: int
) -> None:
    proxy.spec = spec(service())
    with MetadataService("aliyun") as metadata:
        metadata.announce(seconds)
        agent = start(CLOUD="aliyun", METADATA_URL=metadata.url, BOOTED_AT=str(time.monotonic()))
        metadata.wait_asked(2)
        until_logged = time.monotonic() + 20
        while "is ignored" not in agent.log and time.monotonic() < until_logged:
            time.sleep(0.05)
        assert "is ignored" in agent.log
        seen = len(proxy.reports)
        proxy.wait(lambda p: len(p.reports) >= seen + 2)
        assert not any(report.interruption for report in proxy.reports)


def test_a_metadata_service_that_hangs_hurts_nobody(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    with MetadataService("aws") as metadata:
        metadata.hangs = True
        agent = start(CLOUD="aws", METADATA_URL=metadata.url)
        proxy.wait_report(lambda r: r.state == "ready")
        assert agent.terminate() == 0


def test_the_next_proxy_is_tried_and_the_first_may_come_late(
    start: Start, proxy: StandInProxy
) -> None:
    proxy.spec = spec(service())
    agent = start([f"http://127.0.0.1:{free_port()}", proxy.url])
    proxy.wait_report(lambda r: r.state == "ready")
    port = proxy.port
    proxy.close()
    time.sleep(0.8)
    with StandInProxy(proxy.spec, port) as again:
        again.wait_report(lambda r: r.state == "ready")
        assert again.hellos == []
        assert agent.process.poll() is None


def test_the_agent_stays_small(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    process = psutil.Process(agent.process.pid)
    assert process.memory_info().rss < 64 * 1024 * 1024
    busy = process.cpu_times()
    began = time.monotonic()
    proxy.wait(lambda p: p.arrivals[-1] - began > 2)
    now = process.cpu_times()
    used = now.user + now.system - busy.user - busy.system
    assert used < 0.2, f"{used:.2f} s of CPU in two seconds of a heartbeat each 0.3 s"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"GPU": "Not A Name"}, "gpu:"),
        ({"PROXY_URLS": '["ftp://x"]'}, "no http:// or https:// address"),
        ({"NODE_SECRET_FILE": "/nonexistent/secret"}, "No such file"),
        ({"STAT_DIR": "/tmp"}, "did you mean 'state_dir'?"),
        ({"STATE_DIR": "/proc/nowhere"}, "cannot make the directory /proc/nowhere"),
    ],
)
def test_bad_settings_get_one_sentence(settings: dict[str, str], says: str, start: Start) -> None:
    agent = start(**settings)
    assert agent.process.wait(10) == 2
    (line,) = agent.log.splitlines()
    assert says in line


def test_help_has_examples() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "gpu_node", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "examples:" in shown
    assert "--config" in shown


def test_threads_do_not_pile_up_over_restarts(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    process = psutil.Process(agent.process.pid)
    counts = []
    for _ in range(3):
        proxy.forget()
        proxy.commands = [Command(verb="restart-service", service="webui")]
        proxy.wait_report(lambda r: r.state == "loading")
        proxy.forget()
        proxy.wait_report(lambda r: r.state == "ready")
        counts.append(process.num_threads())
    assert max(counts) <= 8
    assert threading.active_count() < 50


def test_sigint_is_a_stop_too(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service())
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(10) == 0
    assert agent.mine() == []


def test_readiness_is_what_the_path_answers(start: Start, proxy: StandInProxy) -> None:
    never = Readiness(path="/../missing", interval=0.1, timeout=1.0)
    # http.server answers 404 for a file that is not there: running is not ready.
    port = free_port()
    command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))
    proxy.spec = spec(Service(command=command, port=port, readiness=never, cwd="/proc/self"))
    start()
    proxy.wait_report(lambda r: any("404" in line for line in r.log))
    proxy.wait(lambda p: len(p.reports) > 5)
    assert {r.state for r in proxy.reports} == {"loading"}


def test_a_change_of_what_only_the_agent_goes_by_cuts_nothing(
    start: Start, proxy: StandInProxy
) -> None:
    before = service()
    proxy.spec = spec(before)
    start()
    first = proxy.wait_report(lambda r: r.state == "ready").services[0].detail
    proxy.spec = spec(
        before.model_copy(update={"max_restarts": 1, "readiness": Readiness(interval=0.5)}),
        version="2",
    )
    seen = len(proxy.reports)
    report = proxy.wait_report(lambda r: r.spec_version == "2")
    assert (report.state, report.services[0].detail) == ("ready", first)
    assert all(r.state == "ready" for r in proxy.reports[seen:])


def test_a_change_waits_for_work_that_is_going_on(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    active = tmp_path / "active"
    active.write_text("1")
    before = service("--active", str(active), activity=Activity(path="/active"))
    proxy.spec = spec(before)
    agent = start()
    first = proxy.wait_report(lambda r: r.active == 1).services[0].detail
    proxy.spec = spec(before.model_copy(update={"env": {"A": "2"}}), version="2")
    proxy.wait(lambda _: "waits until webui has finished its work" in agent.log)
    # Nor does an agent that is started anew cut it for the sake of the change.
    assert json.loads((tmp_path / "state" / "spec.json").read_text())["version"] == "1"
    assert proxy.reports[-1].services[0].detail == first
    active.write_text("0")
    changed = proxy.wait_report(lambda r: r.spec_version == "2" and r.state == "ready")
    assert changed.services[0].detail != first


def test_a_drain_holds_although_the_proxy_asks_for_a_hello(
    start: Start, proxy: StandInProxy
) -> None:
    proxy.spec = spec(service())
    start()
    proxy.wait_report(lambda r: r.state == "ready")
    proxy.commands.append(Command(verb="drain"))
    proxy.wait_report(lambda r: r.services and r.services[0].state == "stopped")
    hellos = len(proxy.hellos)
    proxy.hello_again = True
    proxy.wait(lambda p: len(p.hellos) > hellos)
    proxy.hello_again = False
    proxy.forget()
    proxy.wait(lambda p: len(p.reports) >= 3)
    assert {r.services[0].state for r in proxy.reports} == {"stopped"}
    proxy.commands.append(Command(verb="restart-service", service="webui"))
    proxy.wait_report(lambda r: r.state == "ready")


def test_a_service_that_no_longer_answers_is_not_ready_any_more(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    proxy.spec = spec(service("--broken", str(broken)))
    start()
    first = proxy.wait_report(lambda r: r.state == "ready").services[0].detail
    broken.touch()
    report = proxy.wait_report(lambda r: r.services[0].error)
    assert report.state == "loading"
    assert "GET / answers with an error" in report.services[0].error
    broken.unlink()
    proxy.forget()
    again = proxy.wait_report(lambda r: r.state == "ready")
    assert again.services[0].detail == first  # it was asked, not restarted
