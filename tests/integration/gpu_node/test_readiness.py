"""Ready means: it has inferred. Active means: it says so, or its GPU does. With real servers."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from qwenctl.protocol.messages import Activity, Command, Readiness, Report, Service
from tests.support.agent import Start, spec
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.stand_in_proxy import StandInProxy

SUPPORT = ROOT / "tests" / "support"


def openai(*options: str, timeout: float = 60.0, **more: Any) -> Service:
    port = free_port()
    return Service(
        command=(sys.executable, "-m", "tests.support.openai_api", str(port), *options),
        cwd=str(SUPPORT.parents[1]),
        port=port,
        readiness=Readiness(
            path="/health", interval=0.1, inference="openai", inference_timeout=timeout
        ),
        **{"stop_timeout": 3.0, **more},
    )


def warm_up_words(reports: list[Report]) -> list[str]:
    return [r.progress.text for r in reports if r.progress.phase == "warm-up"]


def completions_of(proxy: StandInProxy) -> list[float]:
    """When each was asked for, as the server logs it."""
    lines = [line for report in proxy.reports for line in report.log]
    return [float(line.split()[1]) for line in lines if "POST /v1/chat/completions" in line]


def test_ready_once_it_has_inferred_and_not_before(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(openai("--fail", "2"))
    start()
    proxy.wait_report(lambda r: r.state == "ready", 60)
    assert {report.state for report in proxy.reports[:-1]} == {"loading"}
    assert proxy.reports[-1].services[0].restarts == 0
    words = warm_up_words(proxy.reports)
    failed = "webui: the first inference failed: POST /v1/chat/completions answered 500: "
    assert failed + "CUDA out of memory; again in 0.5 s" in words
    assert failed + "CUDA out of memory; again in 1 s" in words
    # The line about the last one may come after the report that it is ready.
    completions = proxy.wait(lambda p: (times := completions_of(p))[2:] and times, 60)
    assert len(completions) == 3
    assert completions[2] - completions[1] >= 1.0  # it is not asked at once again


def test_one_that_hangs_is_asked_again(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(openai("--hang", timeout=0.5))
    start()
    proxy.wait_report(lambda r: "no answer within 0.5 s; again in 1 s" in r.progress.text, 60)
    assert {report.state for report in proxy.reports} == {"loading"}
    assert {s.state for r in proxy.reports for s in r.services} == {"starting"}


def test_a_stop_while_it_infers_is_heeded(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(openai("--hang", timeout=600.0))
    agent = start()
    proxy.wait_report(lambda r: any("/v1/models" in line for line in r.log), 60)
    before = psutil.Process(agent.process.pid).num_threads()
    proxy.commands = [Command(verb="drain")]
    proxy.wait_report(lambda r: r.services[0].state == "stopped", 60)
    assert agent.mine() == []
    end = time.monotonic() + 20
    # Those of the service, of its prober and of the inference are gone.
    while psutil.Process(agent.process.pid).num_threads() > before - 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert agent.terminate(60) == 0


def test_an_agent_ends_while_a_service_infers(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(openai("--hang", timeout=600.0))
    agent = start()
    proxy.wait_report(lambda r: any("/v1/models" in line for line in r.log), 60)
    assert agent.terminate(60) == 0
    assert agent.mine() == []


def test_the_key_of_the_server_is_used_and_not_shown(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("VLLM_API_KEY=sk-0123456789abcdef0123456789abcdef\n")
    key = (tmp_path / "env").read_text().strip().partition("=")[2]
    proxy.spec = spec(openai("--api-key", key, env_file=str(tmp_path / "env")))
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready", 60)
    assert key not in agent.log
    assert not any(key in report.model_dump_json() for report in proxy.reports)


# Gradio

gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None and not os.environ.get("CI"),
    reason="gradio is not installed: pip install 'qwenctl[demo]'",
)

PYTHON = os.environ.get("TEST_GRADIO_PYTHON", sys.executable)
"""Another interpreter has another version of Gradio."""


def gradio_app(api_name: str, data: tuple[Any, ...], **more: Any) -> Service:
    port = free_port()
    return Service(
        command=(PYTHON, str(SUPPORT / "gradio_app.py"), str(port)),
        port=port,
        readiness=Readiness(
            interval=0.2, inference="gradio", api_name=api_name, data=data, inference_timeout=60.0
        ),
        activity=Activity(path="/gradio_api/queue/status"),
        **{"stop_timeout": 3.0, **more},
    )


@gradio
def test_a_gradio_app_is_ready_after_a_call_and_tells_who_waits(
    start: Start, proxy: StandInProxy
) -> None:
    service = gradio_app("/stream", (30,))  # 1.5 s: longer than between two reports
    proxy.spec = spec(service)
    start()
    proxy.wait_report(lambda r: r.state == "ready", 100)
    assert set(warm_up_words(proxy.reports)) == {"webui: a first inference"}
    assert proxy.reports[-1].active == 0

    def call() -> None:
        base = f"http://127.0.0.1:{service.port}/gradio_api/call/slow"
        joined = requests.post(base, json={"data": [4]}, timeout=60).json()
        requests.get(f"{base}/{joined['event_id']}", timeout=60)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    # One runs, which Gradio does not tell; the others wait, which it does.
    proxy.wait_report(lambda r: r.active == 2, 60)
    for caller in callers:
        caller.join(60)
    proxy.forget()
    proxy.wait_report(lambda r: r.active == 0, 60)


@gradio
def test_a_gradio_call_that_fails_keeps_it_from_being_ready(
    start: Start, proxy: StandInProxy
) -> None:
    proxy.spec = spec(gradio_app("/fail", (1,)))
    start()
    proxy.wait_report(lambda r: "/fail failed: " in r.progress.text, 100)
    proxy.wait_report(lambda r: "; again in 1 s" in r.progress.text, 60)
    assert {report.state for report in proxy.reports} == {"loading"}
