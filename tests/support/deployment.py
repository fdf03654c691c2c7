"""A whole deployment of real processes: proxy replicas, local instances, and what they did."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import requests

from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.core.events import Event
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.connect import connect
from qwenctl.store.store import Store
from tests.support.net import free_ports
from tests.support.paths import ROOT
from tests.support.program import inherited
from tests.support.toml import toml

__all__ = ["Deployment", "Instance", "ProxyProcess", "gpu_table"]

WEBUI = str(Path(__file__).with_name("webui.py"))


def gpu_table(
    port: int, journal: Path, *, webui: tuple[str, ...] = (), **changes: Any
) -> dict[str, Any]:
    """A ``[gpu.NAME]`` table with the sample WebUI and short times.

    ``changes`` override top-level keys; tables among them (``timing``, ``local``, ``service``) are
    merged.
    """
    command = [sys.executable, WEBUI, str(port), "--journal", str(journal), *webui]
    table: dict[str, Any] = {
        "idle_timeout": 2,
        "boot_estimate": 3,
        "preset": "generic",
        "timing": {"drain": 3, "heartbeat": 0.5},
        "local": {"boot_seconds": 0.2, "stop_seconds": 0.2},
        "service": {
            "command": command,
            "port": port,
            "stop_timeout": 3,
            "readiness": {"interval": 0.2},
        },
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(table.get(key), dict) else value
    return {**table, "service": [table["service"]]}


class ProxyProcess:
    """One replica."""

    def __init__(self, number: int, port: int, config: Path, env: Mapping[str, str]) -> None:
        self.number = number
        self.url = f"http://127.0.0.1:{port}"
        self.config = config
        self.log_file = config.parent / f"proxy-{number}.log"
        self._command = [sys.executable, "-m", "proxy", "--config", str(config)]
        self._command += ["--listen", f"127.0.0.1:{port}"]
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ProxyProcess:
        """Start it; `wait_ready` waits until it answers."""
        env = inherited()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env={**env, **self._env}, stdout=log, stderr=log
            )
        return self

    def wait_ready(self, timeout: float = 30.0) -> ProxyProcess:
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/_qwenctl/readyz", timeout=5).status_code == 200:
                    return self
            assert self.alive, f"the proxy has ended: {self.log[-2000:]}"
            assert time.monotonic() < deadline, f"the proxy is not ready: {self.log[-2000:]}"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As by ``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def status(self, gpu: str = "main") -> dict[str, Any]:
        """What ``/_qwenctl/api/status`` says."""
        answer = requests.get(f"{self.url}/_qwenctl/api/status", params={"gpu": gpu}, timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def wake(self, gpu: str = "main") -> requests.Response:
        return requests.post(f"{self.url}/_qwenctl/api/wake", params={"gpu": gpu}, timeout=10)

    def post(self, path: str = "/count", timeout: float = 60.0) -> requests.Response:
        return requests.post(self.url + path, json={}, timeout=timeout)


class Instance:
    """What the local provider and the WebUI have noted of one GPU."""

    def __init__(self, directory: Path, journal: Path) -> None:
        self._directory = directory
        self._journal = journal

    def _lines(self, name: str) -> list[list[str]]:
        file = self._directory / name
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def starts(self) -> list[float]:
        """When a start call was accepted."""
        return [float(line[0]) for line in self._lines("starts.log")]

    @property
    def stops(self) -> list[float]:
        """When a stop call was accepted."""
        return [float(line[0]) for line in self._lines("stops.log")]

    @property
    def boots(self) -> list[str]:
        """The boots that got as far as running."""
        return [line[0] for line in self._lines("logs/machine.log") if line[-1] == "running"]

    @property
    def record(self) -> dict[str, Any]:
        file = self._directory / "status.json"
        return dict(json.loads(file.read_text())) if file.exists() else {"state": "stopped"}

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The WebUI's journal."""
        if not self._journal.exists():
            return []
        return [json.loads(line) for line in self._journal.read_text().splitlines()]

    def assert_nothing_cut(self) -> None:
        """No WebUI was stopped with a request in flight."""
        cut = [line for line in self.journal if line["event"] == "stopped" and line["active"]]
        assert not cut, f"stopped with requests in flight: {cut}"

    def assert_alternating(self) -> None:
        """Each start was followed by a stop before the next start."""
        calls = sorted([(t, "start") for t in self.starts] + [(t, "stop") for t in self.stops])
        verbs = [verb for _, verb in calls]
        assert verbs == ["start", "stop"] * (len(verbs) // 2) + ["start"] * (len(verbs) % 2), calls


class Deployment:
    """Proxy replicas that share one store and one machine.

    Args:
        directory: everything lies here.
        name: the deployment's name, unique in its store.
        redis_url: the store; empty: an embedded server.
        replicas: how many proxies; each is started by `start`.
        gpus: changes to `gpu_table`, one mapping a GPU.
        env: more environment for the proxies.
        settings: more top-level settings.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "test",
        redis_url: str = "",
        replicas: int = 1,
        gpus: Mapping[str, Mapping[str, Any]] | None = None,
        env: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        gpus = gpus or {"main": {}}
        ports = free_ports(replicas + len(gpus))
        urls = [f"http://127.0.0.1:{port}" for port in ports[:replicas]]
        tables = {
            gpu: gpu_table(port, self._journal(gpu), **changes)
            for port, (gpu, changes) in zip(ports[replicas:], gpus.items())
        }
        content: dict[str, Any] = {
            "deployment": name,
            "state_dir": str(directory / "state"),
            "redis_url": redis_url,
            "proxy": {"listen": f"127.0.0.1:{ports[0]}", "node_urls": urls},
            "gpu": tables,
        }
        for key, value in (settings or {}).items():
            content[key] = (
                {**content[key], **value} if isinstance(content.get(key), dict) else value
            )
        self.config_file = directory / "qwenctl.toml"
        self.config_file.write_text(toml(content))
        self.config: Config = load_config(str(self.config_file), env={})
        self.store = Store(connect(self.config), name)
        self.proxies = [
            ProxyProcess(number, port, self.config_file, env or {})
            for number, port in enumerate(ports[:replicas])
        ]

    def _journal(self, gpu: str) -> Path:
        return self.directory / f"journal-{gpu}.jsonl"

    def start(self) -> Deployment:
        """Start all proxies; returns when all are ready."""
        for proxy in self.proxies:
            proxy.start()
        for proxy in self.proxies:
            proxy.wait_ready()
        return self

    def instance(self, gpu: str = "main") -> Instance:
        path = self.config.state_path / "instances" / self.name / gpu
        return Instance(path, self._journal(gpu))

    # Who leads

    def leader(self, gpu: str = "main", timeout: float = 15.0) -> ProxyProcess:
        """The replica that holds the controller lock."""
        deadline = time.monotonic() + timeout
        while True:
            owner = self.store.snapshot(gpu).leader
            for proxy in self.proxies:
                if owner and proxy.alive and proxy.pid == owner_pid(owner):
                    return proxy
            assert time.monotonic() < deadline, f"no replica leads (lock: {owner!r})"
            time.sleep(0.05)

    def others(self, proxy: ProxyProcess) -> list[ProxyProcess]:
        return [other for other in self.proxies if other is not proxy]

    # What happens

    def last_event(self, gpu: str = "main") -> str:
        """The id of the youngest event, to wait for later ones."""
        events = self.store.events(gpu, 1)
        return events[-1].id if events else "0"

    def follow(self, gpu: str, after: str, timeout: float) -> Iterator[Event]:
        """Events as they happen, until none comes in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            for event in self.store.follow(gpu, after, min(left, 1.0)):
                after = event.id
                yield event

    def wait_event(
        self,
        what: Callable[[Event], bool],
        *,
        gpu: str = "main",
        after: str = "0",
        timeout: float = 30.0,
    ) -> Event:
        """The first such event after that id."""
        for event in self.follow(gpu, after, timeout):
            if what(event):
                return event
        raise AssertionError(f"it has not happened within {timeout} s\n{self.history(gpu)}")

    def wait_transition(
        self, to: Phase, *, gpu: str = "main", after: str = "0", timeout: float = 30.0
    ) -> Event:
        """The first transition to that phase after that event."""
        return self.wait_event(
            lambda e: e.kind == "transition" and e.fields["to"] == to.value,
            gpu=gpu,
            after=after,
            timeout=timeout,
        )

    def wait_phase(self, *phases: Phase, gpu: str = "main", timeout: float = 30.0) -> Snapshot:
        """The snapshot once the GPU is in one of the phases."""
        deadline = time.monotonic() + timeout
        after = self.last_event(gpu)
        while True:
            snapshot = self.store.snapshot(gpu)
            if snapshot.phase in phases:
                return snapshot
            left = deadline - time.monotonic()
            assert left > 0, (
                f"{gpu} is {snapshot.phase.value} after {timeout} s\n{self.history(gpu)}"
            )
            if events := self.store.follow(gpu, after, min(left, 1.0)):
                after = events[-1].id

    def history(self, gpu: str = "main") -> str:
        """The last events in words, for messages of failed tests."""
        lines = []
        for event in self.store.events(gpu, 40):
            what = " ".join(f"{k}={v}" for k, v in event.fields.items() if v and k != "boot_id")
            lines.append(f"  {event.time:.3f} {event.kind} {what}")
        return "\n".join(lines)

    # The end

    def close(self) -> None:
        """End everything that belongs to this deployment, by force."""
        for proxy in self.proxies:
            proxy.kill()
        self.store.close()
        mine = list(processes_of(self.directory))
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(mine, timeout=5)


def owner_pid(owner: str) -> int:
    """The process that a controller's name speaks of."""
    return int(owner.rsplit(":", 2)[1])


def processes_of(directory: Path) -> Iterator[psutil.Process]:
    """Every process that works in that directory, or has something in it on its command line or as
    its agent's state directory."""
    mark = str(directory)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid():
                continue
            # A server rewrites its command line, but not its working directory.
            words = [*process.cmdline(), process.cwd()]
            words.append(process.environ().get("QWENCTL_NODE__STATE_DIR", ""))
            if any(mark in word for word in words):
                yield process
