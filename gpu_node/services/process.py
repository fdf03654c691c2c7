"""The process runtime: a service is a command in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

from gpu_node.services.log_lines import LineSink, secrets_of
from gpu_node.services.orphans import MARK, OrphanKiller
from gpu_node.services.runtime import Output, StartFailed, service_environment
from qwenctl.lib.programs import listens, why_not_run
from qwenctl.protocol.messages import Service


class ProcessRuntime:
    """Runs commands.

    Args:
        log_dir: a service's output goes to ``NAME.log`` here.
        orphans: kills the process groups should this process be killed.
        mark: marks every service's environment as this agent's.
        env: the environment that services start from; the agent's settings are left out of it.
    """

    outlives_agent = False

    def __init__(
        self, log_dir: Path, orphans: OrphanKiller, mark: str, env: Mapping[str, str]
    ) -> None:
        self._log_dir = log_dir
        self._orphans = orphans
        # The node secret above all stays here.
        self._env = {key: value for key, value in env.items() if not key.startswith("QWENCTL_")}
        self._env |= {MARK: mark, "PYTHONUNBUFFERED": "1"}

    def settle(self, names: Collection[str]) -> None:
        """Nothing to do: no command outlives its agent."""

    def start(self, service: Service, output: Output) -> ServiceProcess:
        """Start the command.

        Raises:
            StartFailed: no such program or directory, it may not be run, `env_file` cannot be read,
                or another program listens on the service's port.
        """
        given = service_environment(service)
        env = {**self._env, **given}
        if problem := why_not_run(service.command, service.cwd, env.get("PATH")):
            raise StartFailed(problem, final=True)
        if listens(service.port):
            # That would answer the probes in the service's place.
            raise StartFailed(f"port {service.port} is in use by another program")
        try:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=service.cwd or None,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"cannot run {service.command[0]}: {error.strerror}") from None
        self._orphans.add(process.pid)
        sink = LineSink(self._log_dir / f"{service.name}.log", output, secrets_of(service, given))
        return ServiceProcess(process, self._orphans, sink, service.port)


class ServiceProcess:
    """One run of a command: a `gpu_node.services.runtime.ServiceRun`."""

    up = True
    taken_up = False

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        orphans: OrphanKiller,
        sink: LineSink,
        port: int,
    ) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.detail = f"process {process.pid}"
        self._process = process
        self._orphans = orphans
        self._stop_by: float | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=_read_output, args=(process, sink), daemon=True)
        self._reader.start()

    def wait(self) -> str:
        """Block until the whole group is gone; return how the command ended.

        When the command ends by itself, what it left in its group is killed at once: it may hold
        the port or the GPU's memory. When it was asked to end, its group gets the same time.
        """
        pid = self._process.pid
        if hasattr(os, "waitid") and self._process.returncode is None:
            # Not reaped yet, so that no other group can get the number.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            stop_by = self._stop_by
            if stop_by is None:
                self._signal(signal.SIGKILL)
        code = self._process.wait()
        while stop_by is not None and _any_alive(pid):
            if time.monotonic() >= stop_by:
                self._signal(signal.SIGKILL)
            time.sleep(0.05)  # there is no event for "a group is empty"
        with self._lock:
            self._ended.set()
            self._orphans.discard(pid)
        # The last words matter most after a crash; but a process that left the group on purpose
        # may hold the pipe for ever.
        self._reader.join(timeout=1.0)
        return _describe(code)

    def detach(self) -> None:
        """Not possible: the command is killed with its agent."""
        raise NotImplementedError

    def stop(self, timeout: float) -> None:
        """SIGTERM to the group now, SIGKILL after ``timeout`` seconds. Returns at once."""
        with self._lock:
            if self._stop_by is not None or self._ended.is_set():
                return
            self._stop_by = time.monotonic() + timeout
            self._signal(signal.SIGTERM)
        threading.Thread(target=self._kill_after, args=(timeout,), daemon=True).start()

    def _kill_after(self, timeout: float) -> None:
        if not self._ended.wait(timeout):
            with self._lock:
                if not self._ended.is_set():
                    self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _any_alive(group: int) -> bool:
    """Whether the process group has a member that still does anything.

    Zombies do not count: in a container whose first process does not reap, they stay for ever.
    """
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
        except (OSError, psutil.Error):
            continue
    return False


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _read_output(process: subprocess.Popen[bytes], sink: LineSink) -> None:
    """Pass on the output until the pipe ends."""
    assert process.stdout
    with process.stdout as pipe:
        while chunk := pipe.read(65536):
            sink.feed(chunk)
    sink.close()
