"""When an agent stops its instance, and what it leaves behind; without a proxy and real services."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from gpu_node import agent as module
from gpu_node.agent import Agent
from gpu_node.client import NoContact, Reply
from gpu_node.selfstop.deadman import EXIT_POWER_OFF, DeadMan
from gpu_node.services.runtime import Output
from gpu_node.status_file import StatusFile
from qwenctl.protocol.messages import Answer, Service, Spec

BOOT = "0123456789abcdef"


class Run:
    """A service that runs until it is stopped or left."""

    base_url, up, detail, taken_up = "http://127.0.0.1:9", True, "made up", False

    def __init__(self) -> None:
        self.ended_by = ""
        self._over = threading.Event()

    def _end(self, how: str) -> None:
        self.ended_by = self.ended_by or how
        self._over.set()

    def wait(self) -> str:
        self._over.wait(20)
        return "exit code 0"

    def stop(self, timeout: float) -> None:
        self._end("stop")

    def detach(self) -> None:
        self._end("detach")


class Runtime:
    def __init__(self, *, outlives_agent: bool) -> None:
        self.outlives_agent = outlives_agent
        self.runs: list[Run] = []

    def settle(self, names: Collection[str]) -> None: ...

    def start(self, service: Service, output: Output) -> Run:
        self.runs.append(Run())
        return self.runs[-1]


class Client:
    """Reaches no proxy, or one that accepts everything; ``delay`` is how long that takes."""

    def __init__(self, *, accepts: bool, delay: float = 0.0, spec: Spec | None = None) -> None:
        self.accepts, self.delay, self.spec = accepts, delay, spec

    def send(self, *_: Any) -> Reply:
        time.sleep(self.delay)
        if not self.accepts:
            raise NoContact("nobody answers")
        return Reply(200, Answer(server_time=time.time(), start_seq=1, spec=self.spec))


Make = Callable[..., tuple[Agent, list[float]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(client: Client, runtime: Runtime | None = None, **settings: Any) -> Any:
        limit = settings.pop("limit", 30.0)
        offs: list[float] = []
        any_client: Any = client
        agent = Agent(
            gpu="main",
            boot_id=BOOT,
            client=any_client,
            runtimes={"process": runtime or Runtime(outlives_agent=False)},
            dead_man=DeadMan(tmp_path / "contact", BOOT, limit),
            power_off=lambda: offs.append(time.monotonic()),
            spec_file=tmp_path / "spec.json",
            status_file=StatusFile(tmp_path / "status.json"),
            disk=str(tmp_path),
            **settings,
        )
        return agent, offs

    return build


def end_soon(agent: Agent, seconds: float) -> None:
    timer = threading.Timer(seconds, agent.request_stop)
    timer.daemon = True
    timer.start()


def test_without_contact_and_work_it_stops_its_instance(make: Make) -> None:
    agent, offs = make(Client(accepts=False), limit=0.2)
    end_soon(agent, 15)
    assert agent.run() == EXIT_POWER_OFF
    assert len(offs) == 1


def test_work_that_no_supervisor_has_reported_keeps_it_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that has just been restarted, under a running generation."""
    looks: list[float] = []

    def busy(*_: Any, **__: Any) -> str:
        looks.append(time.monotonic())
        return "vllm generates" if len(looks) < 3 else ""

    monkeypatch.setattr(module, "busy_for_a_while", busy)
    agent, offs = make(Client(accepts=False), limit=0.2)
    end_soon(agent, 15)
    assert agent.run() == EXIT_POWER_OFF
    assert len(looks) == 3
    assert offs[0] >= looks[-1]


def test_an_agent_that_starts_late_first_tries_to_reach_a_proxy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "busy_for_a_while", lambda *_, **__: "")
    agent, offs = make(Client(accepts=True, delay=0.5), limit=30.0)
    agent._dead_man._last -= 60.0  # paused for long
    end_soon(agent, 2.5)
    assert agent.run() == 0
    assert offs == []


@pytest.mark.parametrize(
    ("outlives", "keep", "ended_by"),
    [(True, True, "detach"), (True, False, "stop"), (False, True, "stop")],
)
def test_services_that_can_be_left_run_on_if_they_are_to(
    make: Make, outlives: bool, keep: bool, ended_by: str
) -> None:
    service = Service(name="web", port=9, command=("serve",))
    spec = Spec(version="1", services=(service,))
    runtime = Runtime(outlives_agent=outlives)
    agent, offs = make(Client(accepts=True, spec=spec), runtime, keep_services=keep)
    end_soon(agent, 1.0)
    assert agent.run() == 0
    assert [run.ended_by for run in runtime.runs] == [ended_by]
    assert offs == []
