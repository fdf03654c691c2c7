"""An agent that is killed just after it has asked Docker for something, for each thing it asks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gpu_node.services.boxes import containerised, ready
from tests.support.agent import AgentProcess, Start, spec
from tests.support.docker_engine import DockerEngine
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docker")]

_CHANGE = re.compile(rb"\A(POST|DELETE) \S*?/(networks/create|containers/\S+)")


class Front:
    """A socket in front of Docker's. It tells of each request for a change that it has passed on."""

    def __init__(self, path: Path, engine: DockerEngine) -> None:
        self.host = f"unix://{path}"
        self.seen: Callable[[str], None] = lambda _: None
        self._daemon = engine.host.removeprefix("unix://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(50)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                daemon = socket.socket(socket.AF_UNIX)
                daemon.connect(self._daemon)
                for pair in ((client, daemon, True), (daemon, client, False)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, watched: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
                if watched and (found := _CHANGE.match(piece)):
                    self.seen(found[0].decode())
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def front(tmp_path: Path, engine: DockerEngine) -> Iterator[Front]:
    front = Front(tmp_path / "front.sock", engine)
    yield front
    front.close()


def kill_at(front: Front, agent: AgentProcess, step: int) -> list[str]:
    """Kill the agent at that request for a change; return those that it made."""
    asked: list[str] = []

    def seen(what: str) -> None:
        asked.append(what)
        if len(asked) == step:
            os.kill(agent.process.pid, signal.SIGKILL)

    front.seen = seen
    return asked


@pytest.mark.parametrize("replaced", [False, True], ids=["start", "replace"])
@pytest.mark.parametrize("step", range(1, 5))
def test_the_next_agent_goes_on_from_there(
    start: Start, proxy: StandInProxy, engine: DockerEngine, front: Front, step: int, replaced: bool
) -> None:
    port = free_port()
    proxy.spec = spec(containerised(port=port, env={"A": "1"}, stop_timeout=1.0))
    if replaced:
        agent = start()
        ready(proxy)
        agent.process.kill()
        agent.process.wait()
        proxy.spec = spec(containerised(port=port, env={"A": "2"}, stop_timeout=1.0), version="2")
    agent = start(DOCKER_HOST=front.host)
    asked = kill_at(front, agent, step)
    with contextlib.suppress(AssertionError):  # it may need fewer steps
        until(lambda: agent.process.poll() is not None, 20.0)
    agent.process.kill()
    agent.process.wait()
    assert asked
    proxy.forget()
    start()
    wanted = proxy.spec.version
    told = proxy.wait_report(lambda r: (r.state, r.spec_version) == ("ready", wanted), timeout=60)
    assert told.services[0].restarts == 0
    with contextlib.closing(engine.client()) as client:
        [left] = client.containers(all=True)
        made: Any = client.inspect_container(left["Id"])
    assert f"A={wanted}" in made["Config"]["Env"]
