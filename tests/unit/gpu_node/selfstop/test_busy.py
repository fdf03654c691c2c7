"""Whether anything generates, asked of real HTTP servers and of readings of GPUs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import URI_DEFAULT, HTTPServer
from werkzeug import Request, Response

from gpu_node.machine.nvidia import GpuWatch, Reading
from gpu_node.selfstop.busy import busy, busy_for_a_while, read_spec
from gpu_node.services.runtime import base_url_of
from qwenctl.protocol.messages import Activity, Container, GpuFigures, Service, Spec
from tests.support.net import free_port


class Server:
    """A service that says how many generations run."""

    def __init__(self, http: HTTPServer) -> None:
        self.answers = ["0"]
        """How many generations, one an answer; the last one for good."""
        self.port = http.port
        http.expect_request(URI_DEFAULT).respond_with_handler(self._answer)

    def _answer(self, _: Request) -> Response:
        text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Response(f"vllm:num_requests_running {text}\n")


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


def gpus(*loads: float | None) -> GpuWatch:
    figures = tuple(GpuFigures(index=str(i), utilisation_percent=x) for i, x in enumerate(loads))
    return GpuWatch(lambda: Reading(figures))


METRICS = Activity(path="/metrics", metrics=("vllm:num_requests_running",))


def spec(port: int, activity: Activity = METRICS, **more: Any) -> Spec:
    service = Service(command=("x",), port=port, activity=activity, **more)
    return Spec(version="1", services=(service,))


def test_a_service_that_tells_is_believed(server: Server) -> None:
    assert busy(spec(server.port), gpus(99.0)) == ""
    server.answers = ["2"]
    assert busy(spec(server.port), gpus(0.0)) == "webui: 2 running"


def test_a_claim_that_its_supervisor_doubts_is_none(server: Server) -> None:
    server.answers = ["2"]
    assert busy(spec(server.port), gpus(99.0), doubted={"webui"}) == ""
    assert busy(spec(server.port), gpus(99.0), doubted={"other"}) == "webui: 2 running"
    assert busy_for_a_while(spec(server.port), gpus(99.0), lambda _: None, doubted={"webui"}) == ""


def test_a_container_is_asked_where_it_is_bound(server: Server) -> None:
    server.answers = ["1"]
    for bind in ("0.0.0.0", "127.0.0.1"):
        container = Container(image="x", bind=bind)
        given = spec(server.port, runtime="docker", container=container)
        assert busy(given, gpus()) == "webui: 1 running"


@pytest.mark.parametrize(
    ("container", "host"),
    [
        (None, "127.0.0.1"),
        ({"bind": "0.0.0.0"}, "127.0.0.1"),
        ({"bind": "::"}, "127.0.0.1"),
        ({"bind": "10.0.0.7"}, "10.0.0.7"),
        ({"bind": "fd00::7"}, "[fd00::7]"),
        ({"bind": "10.0.0.7", "network": "host"}, "127.0.0.1"),
    ],
)
def test_where_a_service_is_asked(container: dict[str, Any] | None, host: str) -> None:
    service = Service(command=("x",), port=81)
    if container is not None:
        made = Container(image="x", **container)
        service = service.model_copy(update={"runtime": "docker", "container": made})
    assert base_url_of(service) == f"http://{host}:81"


def test_where_nobody_tells_the_gpus_do(server: Server) -> None:
    silent = spec(free_port())
    for given in (None, Spec(version="1", services=()), silent, spec(server.port, Activity())):
        assert busy(given, gpus(9.0)) == ""
        assert busy(given, gpus(0.0, 40.0)) == "GPU utilisation 40 %"
        assert busy(given, gpus(None)) == ""
        assert busy(given, gpus()) == ""


def test_figures_of_a_driver_that_hangs_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was busy when it answered last may have been idle for hours."""
    hang, readings = threading.Event(), [Reading((GpuFigures(index="0", utilisation_percent=97),))]

    def read() -> Reading:
        if not readings:
            hang.wait(60)
        return readings.pop() if readings else Reading()

    watch = GpuWatch(read)
    try:
        assert busy(None, watch) == "GPU utilisation 97 %"
        monkeypatch.setattr(watch, "look", lambda patience: GpuWatch.look(watch, 0.05))
        monkeypatch.setattr("gpu_node.machine.nvidia.FRESH", 0.0)
        now = time.monotonic()
        monkeypatch.setattr("gpu_node.machine.nvidia.time.monotonic", lambda: now + 5)
        assert busy(None, watch) == "GPU utilisation 97 %"
        monkeypatch.setattr("gpu_node.machine.nvidia.time.monotonic", lambda: now + 31)
        assert busy(None, watch) == ""
    finally:
        hang.set()


def test_figures_with_a_note_mean_nothing() -> None:
    reading = Reading((GpuFigures(index="0", utilisation_percent=97),), "the driver is gone")
    assert busy(None, GpuWatch(lambda: reading)) == ""


def test_the_threshold_is_the_services(server: Server) -> None:
    given = spec(server.port, Activity(gpu_percent=50.0))
    assert busy(given, gpus(40.0)) == ""
    assert busy(given, gpus(50.0)) == "GPU utilisation 50 %"
    # One that both tells and has a threshold: either will do.
    both = METRICS.model_copy(update={"gpu_percent": 5.0})
    assert busy(spec(server.port, both), gpus(6.0)) == "GPU utilisation 6 %"


def test_of_several_services_the_lowest_threshold_holds() -> None:
    services = [
        Service(name=name, command=("x",), port=80, activity=Activity(gpu_percent=percent))
        for name, percent in (("webui", 20.0), ("batch", 60.0))
    ]
    for ordered in (services, services[::-1]):
        given = Spec(version="1", services=tuple(ordered))
        assert busy(given, gpus(30.0)) == "GPU utilisation 30 %"
        assert busy(given, gpus(19.0)) == ""


def test_the_probes_go_through_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.answers = ["1"]
    assert busy(spec(server.port), gpus()) == "webui: 1 running"


def test_a_moment_between_two_requests_is_no_rest(server: Server) -> None:
    pauses: list[float] = []
    server.answers = ["0", "0", "1"]
    assert busy_for_a_while(spec(server.port), gpus(), pauses.append) == "webui: 1 running"
    assert len(pauses) == 2
    server.answers = ["0"]
    assert busy_for_a_while(spec(server.port), gpus(), pauses.append) == ""


def test_a_spec_of_no_use_is_none(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    assert read_spec(file) is None
    for text in (b"", b"{", b"[]", b"\xff", b'{"version": 3}'):
        file.write_bytes(text)
        assert read_spec(file) is None
    file.write_text(spec(80).model_dump_json())
    assert read_spec(file) == spec(80)
