"""The real agent as a process of its own, and what it is told to run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from qwenctl.protocol.messages import Service, Spec
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.stand_in_proxy import SECRET

__all__ = ["PROGRAM", "AgentProcess", "Start", "agents", "service", "spec"]

PROGRAM = str(ROOT / "tests" / "support" / "service_program.py")


def service(*arguments: str, name: str = "webui", **more: Any) -> Service:
    port = more.pop("port", None) or free_port()
    command = (sys.executable, PROGRAM, str(port), *arguments)
    settings = {"command": command, "port": port, "stop_timeout": 3.0, **more}
    return Service(name=name, **settings)


def spec(*services: Service, version: str = "1", **more: Any) -> Spec:
    return Spec(version=version, services=services, **{"heartbeat": 0.3, **more})


class AgentProcess:
    """One agent's process and what it leaves behind.

    Args:
        source: the code that it runs; default: this checkout.
    """

    def __init__(
        self, directory: Path, proxies: list[str], source: Path = ROOT, **settings: str
    ) -> None:
        self.directory = directory
        secret = directory / "secret"
        secret.write_text(SECRET + "\n")
        secret.chmod(0o600)
        env = {
            "GPU": "main",
            "BOOT_ID": "boot-0001",
            "PROXY_URLS": json.dumps(proxies),
            "NODE_SECRET_FILE": str(secret),
            "STATE_DIR": str(directory / "state"),
            "LOG_DIR": str(directory / "logs"),
            **settings,
        }
        self.log_file = directory / "agent.log"
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_node"],
                env={**os.environ, **{f"QWENCTL_NODE__{k}": v for k, v in env.items()}},
                cwd=source,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def mine(self) -> list[psutil.Process]:
        """Every live process that this agent started, wherever it went."""
        mark = str((self.directory / "state").resolve())
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("QWENCTL_NODE_OWNER") == mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_gone(self, timeout: float = 5.0) -> None:
        """Wait until no process of the services is left."""
        _, alive = psutil.wait_procs(self.mine(), timeout=timeout)
        assert not alive
        assert not self.mine()

    def terminate(self, timeout: float = 10.0) -> int:
        self.process.terminate()
        return self.process.wait(timeout)


Start = Callable[..., AgentProcess]


@contextlib.contextmanager
def agents(directory: Path, proxy: str) -> Iterator[Start]:
    """Starts agents of that proxy, one after another, with the same state; kills them at the end.

    What is called takes other proxies, if need be, and settings.
    """
    started: list[AgentProcess] = []

    def make(proxies: list[str] | None = None, **settings: str) -> AgentProcess:
        agent = AgentProcess(directory, proxies or [proxy], **settings)
        started.append(agent)
        return agent

    yield make
    for agent in started:
        agent.process.kill()
        agent.process.wait()
        for process in agent.mine():
            process.kill()
