"""A real proxy process with its own embedded Valkey, and a small WebUI as the node's service."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import requests

from qwenctl.config.loading import load_config
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.connect import connect
from qwenctl.store.store import Store
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.program import inherited
from tests.support.toml import toml
from tests.support.waiting import until

UPSTREAM = str(Path(__file__).with_name("upstream.py"))

PASSWORD = "correct horse"
KEY = "qk_0123456789abcdef0123456789abcdef"


def gpu(**settings: Any) -> dict[str, Any]:
    """The settings of one GPU whose service is the small WebUI."""
    port = settings.pop("port", None) or free_port()
    service = {
        "command": [sys.executable, UPSTREAM, str(port)],
        "port": port,
        "stop_timeout": 1,
        "readiness": {"path": "/ready", "interval": 0.05},
    }
    return {
        "idle_timeout": "10m",
        "boot_estimate": 5,
        "local": {"boot_seconds": 0.05, "stop_seconds": 0.05},
        "timing": {"heartbeat": 0.5, "drain": 3},
        "service": [service],
        **settings,
    }


def password_access() -> dict[str, Any]:
    """Settings of the access control with `PASSWORD` and `KEY`."""
    import hashlib

    from argon2 import PasswordHasher

    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return {
        "mode": "password",
        "password_hash": quick.hash(PASSWORD),
        "keys": [{"name": "ci", "hash": "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()}],
    }


class RunningProxy:
    """One proxy process and all that belongs to it."""

    def __init__(
        self,
        directory: Path,
        source: Path = ROOT,
        env: Mapping[str, str] | None = None,
        limit: str = "",
        **settings: Any,
    ) -> None:
        """``settings`` are those of the config file; ``gpu`` maps names to `gpu` tables.

        The proxy's code is that in ``source``; ``limit`` are options of ``ulimit`` for it.
        """
        self.directory, self.source, self.limit = directory, source, limit
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        proxy = {"listen": f"127.0.0.1:{self.port}", **settings.pop("proxy", {})}
        self.settings: dict[str, Any] = {
            "state_dir": str(directory / "state"),
            "proxy": proxy,
            "gpu": {"main": gpu()},
            **settings,
        }
        self.config_file = directory / "qwenctl.toml"
        self.log_file = directory / "proxy.log"
        self.write_config()
        self.store: Store = Store(connect(self.config), self.config.deployment)
        self.start(**(env or {}))

    @property
    def config(self) -> Any:
        return load_config(str(self.config_file), env={})

    def write_config(self) -> None:
        self.config_file.write_text(toml(self.settings))

    def start(self, **env: str) -> None:
        limited = ["/bin/sh", "-c", f'ulimit {self.limit} && exec "$@"', "sh"] if self.limit else []
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [*limited, sys.executable, "-m", "proxy", "--config", str(self.config_file)],
                stdout=log,
                stderr=log,
                env={**_clean_environment(), "QWENCTL_EMBEDDED_LINGER": "1", **env},
                cwd=self.source,
            )

        def up() -> bool:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(self.url("/_qwenctl/healthz"), timeout=5).ok
            return False

        try:
            until(up, 20, "the proxy's start")
        except BaseException:  # nobody could end it any more
            self.process.kill()
            self.process.wait()
            raise

    def stop(self) -> None:
        """End the proxy."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """End the proxy and the instances, and let go of the embedded Valkey."""
        self.stop()
        machines = []
        for file in (self.directory / "state").glob("instances/*/*/status.json"):
            with contextlib.suppress(psutil.Error, KeyError, ValueError):
                machine = psutil.Process(json.loads(file.read_text())["pid"])
                machines.append(machine)
                machine.terminate()
        _, alive = psutil.wait_procs(machines, timeout=10)
        for machine in alive:
            machine.kill()
        self.store.close()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def node_port(self, name: str = "main") -> int:
        return int(self.settings["gpu"][name]["service"][0]["port"])

    def journal(self, name: str = "main") -> list[dict[str, Any]]:
        """What the small WebUI has seen, asked past the proxy."""
        return requests.get(f"http://127.0.0.1:{self.node_port(name)}/journal", timeout=5).json()  # type: ignore[no-any-return]

    def journal_of(self, target: str, name: str = "main") -> list[dict[str, Any]]:
        return [entry for entry in self.journal(name) if entry["target"] == target]

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def memory(self) -> int:
        """The proxy's resident memory, in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def snapshot(self, name: str = "main") -> Snapshot:
        return self.store.snapshot(name)

    def wake(self, name: str = "main") -> None:
        """Have the GPU on, by way of the store, and wait until the proxy knows it."""
        self.store.pin(name, "pin:test", 3600.0, reason="test", actor="test")
        self.wait_for("ready", name)

    def wait_for(self, phase: str, name: str = "main", seconds: float = 20.0) -> None:
        """Wait for a phase, in the store and in the proxy's own view."""
        until(lambda: self.snapshot(name).phase.value == phase, seconds, f"phase {phase}")
        serves = phase in ("ready", "draining")
        until(lambda: self.forwards(name) is serves, 5, f"phase {phase} in the proxy")

    def forwards(self, name: str) -> bool:
        """Whether a request for this GPU would be forwarded now."""
        hosts = self.settings["gpu"][name].get("hosts")
        headers = {"Authorization": f"Bearer {KEY}", **({"Host": hosts[0]} if hosts else {})}
        answer = requests.get(self.url("/_qwenctl/gate"), headers=headers, timeout=5)
        return answer.status_code == 204

    def untouched(self, name: str = "main") -> bool:
        """Whether nothing has ever asked for this GPU: no lease, no event, no start."""
        starts = self.directory / "state" / "instances" / "default" / name / "starts.log"
        snapshot = self.snapshot(name)
        kinds = {event.kind for event in self.store.events(name, 1000)}
        return (
            snapshot.phase.value == "off"
            and not snapshot.leases
            and not kinds & {"lease", "transition"}
            and not starts.exists()
        )


@contextlib.contextmanager
def running(directory: Path, **settings: Any) -> Iterator[RunningProxy]:
    """A proxy that runs as long as the block does."""
    proxy = RunningProxy(directory, **settings)
    try:
        yield proxy
    finally:
        proxy.close()


def _clean_environment() -> dict[str, str]:
    return inherited()


class RawClient:
    """Bytes in, bytes out: for what no HTTP library would send."""

    def __init__(self, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """The status and the headers of the next answer."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1."), f"no answer: {line!r}"
        headers = []
        while (row := self.file.readline().rstrip(b"\r\n")) != b"":
            name, _, value = row.partition(b":")
            headers.append((name.decode().lower(), value.strip().decode("latin-1")))
        return int(line.split()[1]), headers

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer, whole."""
        status, headers = self.head()
        named = dict(headers)
        if "chunked" in named.get("transfer-encoding", ""):
            body = b""
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
        else:
            body = self.file.read(int(named.get("content-length", 0)))
        return status, named, body


def leases(proxy: RunningProxy, name: str = "main") -> list[str]:
    return [lease.name for lease in proxy.snapshot(name).leases]
