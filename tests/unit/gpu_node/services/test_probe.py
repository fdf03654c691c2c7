from __future__ import annotations

import gzip
import time

import pytest
import requests
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from gpu_node.machine.nvidia import GpuView
from gpu_node.services.probe import GpuLoad, probe_active, sum_samples
from qwenctl.protocol.messages import Activity, GpuFigures

TEXT = """\
# HELP vllm:num_requests_running Requests being run.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} 9"} 2.0
vllm:num_requests_running{engine="1",model_name="b"} 1.0 1700000000
vllm:num_requests_running_total 50
vllm:num_requests_waiting 4
broken{x="y"}
half 0.5
nothing NaN
"""


@pytest.mark.parametrize(
    ("names", "total"),
    [
        (("vllm:num_requests_running",), 3),
        (("vllm:num_requests_running", "vllm:num_requests_waiting"), 7),
        (("half",), 1),
        (("nothing",), None),
        (("broken",), None),
        (("absent",), None),
    ],
)
def test_samples_are_added_up(names: tuple[str, ...], total: int | None) -> None:
    assert sum_samples(TEXT, names) == total


def busy(*percents: float | None) -> GpuView:
    gpus = tuple(
        GpuFigures(index=str(index), uuid=f"GPU-{index}", utilisation_percent=percent)
        for index, percent in enumerate(percents)
    )
    return GpuView(gpus, "", 0.0)


NO_ANSWER = GpuView(busy(90).gpus, "the NVIDIA driver has not answered for 9 s", 9.0)


@pytest.mark.parametrize(
    ("names", "views", "judged"),
    [
        (("all",), [busy(20), busy(30), busy(20), busy(19.9), busy(90)], [0, 0, 1, 0, 0]),
        (("all",), [busy(0, 50)] * 3, [0, 0, 1]),
        # Only the GPUs that it uses, by index or UUID.
        (("0",), [busy(0, 50)] * 4, [0, 0, 0, 0]),
        (("1",), [busy(0, 50)] * 3, [0, 0, 1]),
        (("GPU-1",), [busy(0, 50)] * 3, [0, 0, 1]),
        ((), [busy(90)] * 4, [0, 0, 0, 0]),
        # A driver that tells nothing, for a while and for long.
        (("all",), [*[busy(90)] * 3, NO_ANSWER, busy(None), busy(90)], [0, 0, 1, 1, 1, 1]),
        (("all",), [*[busy(90)] * 3, *[NO_ANSWER] * 3, busy(90)], [0, 0, 1, 1, 1, 0, 0]),
        (("all",), [busy()] * 4, [0, 0, 0, 0]),
        (("all",), [busy(None)] * 4, [0, 0, 0, 0]),
    ],
)
def test_a_gpu_busy_for_long_enough_is_a_generation(
    names: tuple[str, ...], views: list[GpuView], judged: list[int]
) -> None:
    load = GpuLoad(Activity(gpu_percent=20, gpu_samples=3), names)
    assert [load.look(view) for view in views] == judged


@pytest.mark.parametrize(
    ("status", "body", "active"),
    [
        (200, b'{"active": 2}', 2),
        (200, b'{"active": 1, "queue_size": 7}', 1),
        # Gradio's: how many wait
        (200, b'{"msg":"estimation","event_id":null,"rank":null,"queue_size":3}', 3),
        (200, b'{"msg":"estimation","queue_size":0,"rank_eta":null}', 0),
        (200, b'{"msg":"estimation"}', None),
        (200, b"[]", None),
        (200, b"[" * 100_000, None),
        (200, b'{"active": 1' + b"0" * 400 + b"}", None),
        (200, b'{"active": 1e999}', None),
        (200, b"\xff\xfe", None),
        (401, b'{"active": 2}', None),
    ],
)
def test_what_an_activity_path_says(
    httpserver: HTTPServer, status: int, body: bytes, active: int | None
) -> None:
    httpserver.expect_request("/active").respond_with_data(body, status)
    with requests.Session() as http:
        found = probe_active(http, httpserver.url_for(""), Activity(path="/active"), 10.0)
    assert found == active


@pytest.mark.parametrize("activity", [Activity(path="/m"), Activity(path="/m", metrics=("x",))])
def test_a_packed_page_is_not_unpacked(httpserver: HTTPServer, activity: Activity) -> None:
    """A few kilobytes may be gigabytes."""
    page = gzip.compress(b'{"active": 1}' if not activity.metrics else b"x 1\n")
    headers = {"Content-Encoding": "gzip"}
    httpserver.expect_request("/m").respond_with_data(page, headers=headers)
    with requests.Session() as http:
        assert probe_active(http, httpserver.url_for(""), activity, 10.0) is None


def test_a_page_that_drips_is_given_up(httpserver: HTTPServer) -> None:
    """Each byte comes in time, the page never."""

    def drip(_: Request) -> Response:
        return Response((time.sleep(0.05) or b" " for _ in range(100)), mimetype="text/plain")

    httpserver.expect_request("/m").respond_with_handler(drip)
    began = time.monotonic()
    with requests.Session() as http:
        assert probe_active(http, httpserver.url_for(""), Activity(path="/m"), 0.3) is None
    assert time.monotonic() - began < 3.0
