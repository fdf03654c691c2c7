"""The agent as a real process, in conversation with a real HTTP server that signs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from qwenctl.lib.version import full_version
from qwenctl.protocol.messages import Command, Service
from tests.support.agent import Start, service, spec
from tests.support.metadata import MetadataService
from tests.support.net import free_port
from tests.support.stand_in_proxy import SECRET, StandInProxy

pytestmark = pytest.mark.fast


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


def test_only_one_agent_in_a_state_directory(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec()
    start()
    proxy.wait(lambda p: p.hellos)
    second = start()
    assert second.process.wait(10) == 2
    assert "another agent runs" in second.log


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
        ({"GPU": "Not A Name"}, "QWENCTL_NODE__GPU (gpu):"),
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


def test_an_agent_says_which_spec_it_does_not_know(start: Start, proxy: StandInProxy) -> None:
    known = spec(service())
    unknown = service().model_copy(update={"runtime": "pod"})  # as of a later version
    proxy.spec = known.model_copy(update={"services": (unknown,)})
    start()
    proxy.wait(lambda p: any("spec.services.0.runtime" in h.not_understood for h in p.hellos))
    assert proxy.hellos[0].agent_version == full_version()
    proxy.spec = known
    ready = proxy.wait_report(lambda r: r.state == "ready")
    assert ready.not_understood == ""
