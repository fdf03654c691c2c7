"""Real services of a real agent: how they start, become ready, break, change and end."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from qwenctl.protocol.messages import Activity, Readiness, Service
from tests.support.agent import Start, service, spec
from tests.support.net import free_port
from tests.support.stand_in_proxy import SECRET, StandInProxy

pytestmark = pytest.mark.fast


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
        service("--runaway", name="three", stop_timeout=60.0),
    )
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    assert len(agent.mine()) == 5
    assert agent.terminate(30) == 0  # nobody waits for what has ended
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
