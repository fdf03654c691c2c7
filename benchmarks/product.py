"""qwenctl as its users run it: `qwenctl serve` in front of one local instance."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.harness import (
    HERE,
    SERVER_CORE,
    CannotMeasure,
    children,
    free_port,
    pinned,
    scratch,
    until,
    wait_port,
)

__all__ = ["PROGRAM", "Product", "environment", "product"]

GPU = "main"

PROGRAM = str(Path(sys.executable).parent / "qwenctl")


class Product:
    """A running proxy and its GPU's instance."""

    def __init__(
        self, directory: Path, port: int, service_port: int, process: subprocess.Popen[bytes]
    ) -> None:
        self.directory = directory
        self.port = port
        self.service_port = service_port
        self.process = process
        self.config = directory / "qwenctl.toml"
        self.state = directory / "state"
        self.instance = self.state / "instances" / "default" / GPU

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, object]]:
        """One short request to the control plane: the status and the JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def wake(self) -> None:
        """Want the GPU on, as the waiting page's script does."""
        status, answer = self.ask(
            "POST", f"/_qwenctl/api/wake?gpu={GPU}", **{"X-Qwenctl-Wake": "1"}
        )
        if status != 202:
            raise CannotMeasure(f"the wake was refused: {status} {answer}")

    @property
    def phase(self) -> str:
        return str(self.ask("GET", f"/_qwenctl/api/status?gpu={GPU}")[1].get("phase"))

    def wait_phase(self, phase: str, seconds: float = 60.0) -> None:
        try:
            until(f"phase {phase!r}", lambda: self.phase == phase, seconds, 0.05)
        except CannotMeasure as error:
            raise CannotMeasure(f"{error}; it is {self.phase!r}") from None

    def cut(self) -> None:
        """`qwenctl down --now`, and wait until the GPU is off."""
        command = [PROGRAM, "down", "--now", "--config", str(self.config)]
        try:
            done = subprocess.run(
                command,
                cwd=HERE.parent,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            raise CannotMeasure("`qwenctl down --now` did not end within 60 s") from None
        if done.returncode:
            raise CannotMeasure(f"qwenctl down --now: {done.stderr.strip()}")
        self.wait_phase("off")

    def processes(self) -> dict[str, psutil.Process]:
        """The proxy, the embedded Valkey and its keeper."""
        found = {"proxy": psutil.Process(self.process.pid)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if "qwenctl.store.embedded" in line and str(self.state) in line:
                    found["Valkey's keeper"] = process
                    for child in process.children():
                        found["Valkey"] = child
        return found

    def end_instance(self) -> None:
        """Switch the local instance off as its provider does, so that its services end in order."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid = json.loads((self.instance / "status.json").read_bytes())["pid"]
            machine = psutil.Process(pid)
            if str(self.directory) in " ".join(machine.cmdline()):
                machine.send_signal(signal.SIGTERM)
                machine.wait(15)


def environment() -> dict[str, str]:
    """Ours, without settings of another qwenctl, and with compiled modules kept as usual."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("QWENCTL_") and name != "PYTHONDONTWRITEBYTECODE"
    }


@contextlib.contextmanager
def product(
    service: Callable[[Path], tuple[Sequence[str], int]],
    *,
    boot_seconds: float = 0.0,
    readiness: str = "/",
    idle_timeout: float = 3600.0,
    core: int | None = SERVER_CORE,
) -> Iterator[Product]:
    """A proxy with a sleeping GPU; everything ends with the block.

    Args:
        service: given a directory of its own, the service's command and its port.
        boot_seconds: how long the instance takes from start to running.
        readiness: the path that the agent asks to see whether the service is ready.
        idle_timeout: seconds until the GPU would be switched off by itself.
        core: the processor core of the proxy; None: any.

    Raises:
        CannotMeasure: qwenctl is not installed, or does not start.
    """
    if not Path(PROGRAM).exists():
        raise CannotMeasure(f"{PROGRAM} is not installed: pip install -e '.[proxy]'")
    with scratch() as directory, children() as spawn:
        command, service_port = service(directory)
        port = free_port()
        (directory / "qwenctl.toml").write_text(
            f"""\
state_dir = {json.dumps(str(directory / "state"))}
[proxy]
listen = "127.0.0.1:{port}"
[gpu.{GPU}]
provider = "local"
preset = "generic"
idle_timeout = {idle_timeout}
local = {{ boot_seconds = {boot_seconds}, stop_seconds = 0 }}
[[gpu.{GPU}.service]]
command = {json.dumps(list(command))}
port = {service_port}
readiness = {{ path = {json.dumps(readiness)}, interval = 0.1 }}
"""
        )
        serve = [PROGRAM, "serve", "--config", str(directory / "qwenctl.toml")]
        with (directory / "proxy.log").open("wb") as log:
            process = spawn(
                pinned(core, serve) if core is not None else serve,
                cwd=HERE.parent,
                env=environment(),
                stderr=log,
            )
        running = Product(directory, port, service_port, process)
        try:
            wait_port(port, process, "qwenctl serve")
            yield running
        finally:
            running.end_instance()
