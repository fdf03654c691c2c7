"""`qwenctl.control.agentless`: what is asked of a WebUI, and what is reported of it, against a real store."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qwenctl.clouds.base import Accepted, Observation
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.agentless import HURRY, IDLE, Prober, probe
from qwenctl.control.controller import Controller
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Observed, Phase
from qwenctl.core.snapshot import Lock
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.protocol.messages import Hello, Readiness
from qwenctl.store.store import Store
from tests.support.net import free_port
from tests.support.virtual_time import VirtualClock

UP = [Phase.OFF, Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY]
_nonces = (f"nonce-{number:020d}" for number in itertools.count())


class WebUI(ThreadingHTTPServer):
    """Answers with `status`, or hangs (0) or hangs up (-1)."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = 200
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: WebUI

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        if self.server.status <= 0:
            if self.server.status == 0:
                self.server.over.wait(30)
            return
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Set-Cookie", "session=1")
        self.send_header("Content-Length", str(1 << 40))  # nobody reads it
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def webui() -> Iterator[WebUI]:
    server = WebUI()
    yield server
    server.close()


class Life:
    """One GPU without an agent, moved by hand as its controller would."""

    def __init__(self, store: Store, clock: VirtualClock, port: int) -> None:
        self.store, self.clock = store, clock
        readiness = {"path": "/healthz", "timeout": 0.5}
        self.gpu = GpuConfig.model_validate(
            {"agent": False, "service": [{"port": port, "readiness": readiness}]}
        )
        self.leads = True
        self.prober = self.another()

    def another(self) -> Prober:
        return Prober("main", self.gpu, self.store, leads=lambda: self.leads)

    def lock(self) -> Lock:
        lock, _, _ = self.store.acquire("main", "test", 1000.0)
        assert lock
        return lock

    def address(self, address: str) -> None:
        self.store.record_observation("main", self.lock(), state="running", address=address)

    def move(self, to: Phase) -> None:
        source = self.store.snapshot("main").phase
        move = Move(to, "test", Guard.NONE)
        self.store.transition("main", self.lock(), source, move, drain=0, idle_timeout=1)
        assert self.phase is to

    def up_to(self, to: Phase) -> None:
        """As it goes with a WebUI that answers."""
        self.address("127.0.0.1")
        for phase in UP[1 : UP.index(to) + 1]:
            self.move(phase)
            if phase in (Phase.BOOTING, Phase.LOADING):
                self.prober.step()

    @property
    def phase(self) -> Phase:
        return self.store.snapshot("main").phase

    @property
    def node(self) -> tuple[str, str]:
        """State and error of the node's record."""
        view = self.store.snapshot("main").node_view
        return view.state or ("hello" if view.hello else ""), view.error

    @property
    def seen_ago(self) -> float | None:
        return self.store.snapshot("main").node_view.heartbeat_age


@pytest.fixture
def life(store: Store, clock: VirtualClock, webui: WebUI) -> Life:
    return Life(store, clock, webui.port)


# One probe


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, ProbeResult.READY),
        (302, ProbeResult.READY),
        (401, ProbeResult.ERROR),
        (503, ProbeResult.ERROR),
        (-1, ProbeResult.REFUSED),
        (0, ProbeResult.SILENT),
    ],
)
def test_what_answers_mean(webui: WebUI, status: int, answer: ProbeResult) -> None:
    webui.status = status
    found, why = probe("127.0.0.1", webui.port, Readiness(timeout=0.5))
    assert found is answer
    assert bool(why) == (answer is not ProbeResult.READY)
    assert len(webui.requests) == 1  # the redirect was not followed


def test_a_probe_brings_nothing_of_this_machine_along(
    webui: WebUI, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for _ in range(2):
        assert probe("127.0.0.1", webui.port, Readiness(path="a b/é?x=1"))[0] is ProbeResult.READY
    for path, headers in webui.requests:
        assert path == "/a%20b/%C3%A9?x=1"
        assert set(headers) == {"Host", "User-Agent", "Accept-Encoding", "Connection"}


def test_nobody_listens() -> None:
    assert probe("127.0.0.1", free_port(), Readiness()) == (
        ProbeResult.REFUSED,
        "connection refused",
    )


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        found, _ = probe("127.0.0.1", server.getsockname()[1], Readiness(timeout=5))
        thread.join()
    assert found is ProbeResult.REFUSED


def test_a_name_that_nobody_knows() -> None:
    assert probe("no-such-host.invalid", 80, Readiness())[0] is ProbeResult.SILENT


# A boot


def test_a_boot(life: Life, webui: WebUI) -> None:
    assert life.prober.step() == IDLE
    life.address("127.0.0.1")
    life.move(Phase.STARTING)
    assert life.prober.step() == IDLE
    assert (life.node, webui.requests) == (("", ""), [])

    life.move(Phase.BOOTING)
    assert life.prober.step() == 0.0
    assert life.node == ("hello", "")
    assert not webui.requests  # what is reported was asked after the hello

    webui.status = 503
    assert life.prober.step() == HURRY
    assert life.node == ("loading", "HTTP 503")
    life.move(Phase.LOADING)
    webui.status = 200
    assert life.prober.step() == 1.0
    assert life.node == ("ready", "")
    report = life.store.snapshot("main").report
    assert report
    assert [service.state for service in report.services] == ["ready"]
    assert webui.requests[-1][0] == "/healthz"
    hellos = [event for event in life.store.events("main") if event.kind == "hello"]
    assert [event.fields["start_seq"] for event in hellos] == ["1"]


def test_without_an_address_nothing_is_asked(life: Life, webui: WebUI) -> None:
    life.address("")
    life.move(Phase.STARTING)
    life.move(Phase.BOOTING)
    assert life.prober.step() == IDLE
    assert life.node == ("", "")


@pytest.mark.parametrize("phase", [Phase.OFF, Phase.STARTING, Phase.STOPPING])
def test_an_instance_on_its_way_out_is_not_ready(life: Life, webui: WebUI, phase: Phase) -> None:
    life.up_to(Phase.READY)
    for to in (Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.STARTING):
        life.move(to)
        if to is phase:
            break
    node, asked = life.node, len(webui.requests)
    life.clock.advance(60)
    for prober in (life.prober, life.another()):
        assert prober.step() == IDLE
    assert (life.node, len(webui.requests)) == (node, asked)
    assert life.phase is phase


def test_an_answer_from_before_the_stop_does_not_count_for_the_next_start(
    life: Life, webui: WebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is under way while the instance is stopped and started again."""
    life.up_to(Phase.READY)
    life.clock.advance(60)

    def slow(*args: Any) -> tuple[ProbeResult, str]:
        for to in (Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.STARTING, Phase.BOOTING):
            life.move(to)
        assert life.another().step() == 0.0
        return probe(*args)

    monkeypatch.setattr("qwenctl.control.agentless.probe", slow)
    life.prober.step()
    assert life.node == ("hello", "")


def test_an_instance_that_somebody_else_starts_has_a_boot_of_its_own(
    life: Life, webui: WebUI
) -> None:
    life.up_to(Phase.READY)
    for to in (Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.BOOTING):  # found running
        life.move(to)
    assert life.store.snapshot("main").start_seq == 1
    life.prober.step()
    life.prober.step()
    assert life.node == ("ready", "")


# While it is ready


def test_reports_come_each_heartbeat(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    life.prober.step()
    for _ in range(4):
        life.clock.advance(1.0)
        life.prober.step()
    assert life.seen_ago == pytest.approx(4.0)
    life.clock.advance(1.5)
    life.prober.step()
    assert life.seen_ago == pytest.approx(0.0)


def test_one_odd_answer_is_none(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    webui.status = 502
    assert life.prober.step() == HURRY
    assert life.node[0] == "ready"
    webui.status = 200
    life.prober.step()
    webui.status = 502
    life.prober.step()
    assert life.node[0] == "ready"
    life.prober.step()
    assert life.node == ("loading", "HTTP 502")
    assert life.store.snapshot("main").time("look_at") is not None
    life.clock.advance(6.0)
    life.prober.step()
    assert life.seen_ago == pytest.approx(0.0)  # something is there


def test_a_service_that_is_gone_is_told_once_and_then_no_more(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    port = webui.port
    webui.close()
    life.prober.step()
    assert life.node[0] == "ready"
    life.prober.step()
    assert life.node == ("loading", "connection refused")
    life.clock.advance(60.0)
    life.prober.step()
    assert life.seen_ago == pytest.approx(60.0)
    life.move(Phase.LOADING)
    back = WebUI(port)
    try:
        life.prober.step()
    finally:
        back.close()
    assert life.node == ("ready", "")
    assert life.seen_ago == pytest.approx(0.0)


def test_a_service_that_says_nothing_may_be_at_work(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    webui.status = 0
    for _ in range(3):
        life.clock.advance(10.0)
        life.prober.step()
    assert life.node[0] == "ready"
    assert life.seen_ago == pytest.approx(30.0)


# Who asks


def test_only_who_leads_asks(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    life.leads = False
    asked = len(webui.requests)
    life.clock.advance(60.0)
    assert life.prober.step() == IDLE
    assert len(webui.requests) == asked
    assert life.seen_ago == pytest.approx(60.0)


def test_who_has_lost_the_lead_meanwhile_reports_nothing(
    life: Life, webui: WebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.up_to(Phase.READY)
    life.clock.advance(60.0)

    def slow(*args: Any) -> tuple[ProbeResult, str]:
        life.leads = False
        return probe(*args)

    monkeypatch.setattr("qwenctl.control.agentless.probe", slow)
    assert life.prober.step() == IDLE
    assert life.seen_ago == pytest.approx(60.0)


def test_another_leader_goes_on_with_the_same_boot(life: Life, webui: WebUI) -> None:
    life.up_to(Phase.READY)
    boot = life.store.snapshot("main").node["boot_id"]
    life.clock.advance(6.0)
    life.another().step()
    assert life.store.snapshot("main").node["boot_id"] == boot
    assert life.node == ("ready", "")
    assert life.seen_ago == pytest.approx(0.0)


def test_it_takes_over_from_an_agent_that_falls_silent(life: Life, webui: WebUI) -> None:
    """The GPU is ready, and ``agent = false`` is new in the configuration."""
    life.address("127.0.0.1")
    life.move(Phase.STARTING)
    life.move(Phase.BOOTING)
    verdict, _ = life.store.hello(Hello(gpu="main", boot_id="boot-1234"), next(_nonces))
    assert verdict == "ok"
    life.move(Phase.LOADING)
    assert life.prober.step() == 1.0  # not at once: the agent may have reported just now
    life.move(Phase.READY)
    assert life.prober.step() == 1.0
    assert life.store.snapshot("main").node["boot_id"] == "boot-1234"
    life.clock.advance(20.0)
    assert life.prober.step() == 0.0
    life.prober.step()
    assert life.store.snapshot("main").node["boot_id"].startswith("agentless-1-")
    assert life.node == ("ready", "")


class Running:
    """A cloud whose instance runs; counts how often it is asked."""

    call_timeout = 5.0
    observe_interval = 2.0

    def __init__(self) -> None:
        self.looks = 0

    def describe(self) -> Observation:
        self.looks += 1
        return Observation(Observed.RUNNING, "i-1", "127.0.0.1")

    def start(self) -> Accepted:
        raise AssertionError("it runs")

    stop = start


def test_while_nothing_answers_the_cloud_is_asked_whether_it_is_there(
    life: Life, webui: WebUI
) -> None:
    """That we have asked in vain, each heartbeat, is no sign of life, as an agent's report is."""
    webui.status = 503
    life.store.demand("main", "request:me", 3600.0, reason="test", actor="me")
    cloud = Running()
    controller = Controller("main", life.gpu, life.store, cloud, monotonic=life.clock)
    controller.step()
    life.prober.step()
    controller.step()
    assert life.phase is Phase.LOADING
    asked = cloud.looks
    for _ in range(25):
        life.clock.advance(2.0)
        life.prober.step()
        controller.step()
    assert life.phase is Phase.LOADING
    assert life.seen_ago is not None
    assert life.seen_ago < 10
    assert cloud.looks - asked >= 4
