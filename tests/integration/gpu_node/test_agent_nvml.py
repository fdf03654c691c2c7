"""The agent with a library in the place of the driver's own: loaded, asked, and let go as that is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qwenctl.protocol.messages import Activity, Report
from tests.support.agent import AgentProcess, service, spec
from tests.support.paths import ROOT
from tests.support.stand_in_proxy import StandInProxy

SOURCE = ROOT / "tests" / "support" / "nvml.c"

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="this machine cannot compile C")


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is told what to do."""
    library = tmp_path / "lib" / "libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("NVML_CONTROL", str(tmp_path / "control"))
    return tmp_path / "control"


@pytest.fixture
def agent(control: Path, tmp_path: Path, proxy: StandInProxy) -> Iterator[AgentProcess]:
    proxy.spec = spec(service(activity=Activity(gpu_percent=30, gpu_samples=2)))
    process = AgentProcess(tmp_path, [proxy.url])
    yield process
    process.process.kill()
    process.process.wait()
    for left in process.mine():
        left.kill()


def has_figures(report: Report) -> bool:
    return any(gpu.utilisation_percent == 37 for gpu in report.resources.gpus)


def test_the_figures_reach_the_proxy_and_count_as_activity(
    agent: AgentProcess, proxy: StandInProxy
) -> None:
    (gpu,) = proxy.wait_report(has_figures, 60).resources.gpus
    assert (gpu.name, gpu.memory_total) == ("NVIDIA H100 80GB HBM3", 85_520_809_984)
    assert (gpu.temperature, gpu.power, gpu.power_limit) == (61, 310.244, None)
    proxy.wait_report(lambda r: r.state == "ready" and r.active == 1, 60)
    assert agent.terminate(60) == 0


def test_heartbeats_go_on_while_the_driver_hangs_and_the_agent_can_be_stopped(
    agent: AgentProcess, proxy: StandInProxy, control: Path
) -> None:
    proxy.wait_report(has_figures, 60)
    control.write_text("hang")
    told = proxy.wait_report(lambda r: "has not answered" in r.resources.gpu_note, 60)
    assert has_figures(told)  # the last known ones
    assert told.resources.gpus_age is not None
    assert told.resources.gpus_age >= 4
    threads = psutil.Process(agent.process.pid).num_threads()
    seen = len(proxy.reports)
    proxy.wait(lambda p: len(p.reports) >= seen + 10, 60)
    assert psutil.Process(agent.process.pid).num_threads() <= threads
    proxy.wait_report(lambda r: r.active == 1, 60)
    proxy.wait(lambda p: p.reports[-1].active == 0, 60)  # nobody knows of any work
    assert agent.terminate(60) == 0
    assert agent.mine() == []


def test_a_lost_gpu_and_a_reloaded_driver_are_said(
    agent: AgentProcess, proxy: StandInProxy, control: Path
) -> None:
    proxy.wait_report(has_figures, 60)
    control.write_text("lost")
    proxy.wait_report(lambda r: any("off the bus" in g.error for g in r.resources.gpus), 60)
    control.write_text("reload")
    proxy.wait_report(lambda r: "was reloaded" in r.resources.gpu_note, 60)
    control.unlink()
    proxy.forget()
    proxy.wait_report(has_figures, 90)
    assert agent.terminate(60) == 0


def test_an_agent_stops_although_its_first_call_hangs(
    control: Path, tmp_path: Path, proxy: StandInProxy
) -> None:
    control.write_text("hang")
    proxy.spec = spec(service())
    process = AgentProcess(tmp_path, [proxy.url])
    try:
        proxy.wait_report(lambda r: r.state == "ready", 60)
        proxy.wait_report(lambda r: "has not answered for" in r.resources.gpu_note, 60)
        assert process.terminate(60) == 0
    finally:
        process.process.kill()
        process.process.wait()
    assert "Traceback" not in process.log
