"""The process runtime: a service is a command in a process group of its own."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

import psutil

from gpu_node.guard import MARK, Guard
from gpu_node.progress import parse_progress
from gpu_node.runtime import Output, StartFailed
from qwenctl.wire import Service

__all__ = ["ProcessRuntime"]

LOG_BYTES = 5 * 1024 * 1024
MAX_LINE_BYTES = 8 * 1024

_ENDS = re.compile(rb"\r\n|\n|\r(?!$)")
"""A line's end; a carriage return at the very end may be one half of an end."""


# Colours and other terminal control; tabs stay.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class ProcessRuntime:
    """Runs commands.

    Args:
        log_dir: a service's output goes to ``NAME.log`` here.
        guard: kills the process groups should this process be killed.
        mark: the owner's mark that every service carries in its environment.
        env: the environment that services start from; our own settings are left out of it.
    """

    def __init__(self, log_dir: Path, guard: Guard, mark: str, env: Mapping[str, str]) -> None:
        self._log_dir = log_dir
        self._guard = guard
        # The node secret in particular is none of a service's business.
        self._env = {key: value for key, value in env.items() if not key.startswith("QWENCTL_")}
        self._env |= {MARK: mark, "PYTHONUNBUFFERED": "1"}

    def start(self, service: Service, output: Output) -> ServiceProcess:
        """Start the command.

        Raises:
            StartFailed: no such program or directory, or it may not be run.
        """
        env = {**self._env, **service.env}
        cwd = service.cwd or None
        program = service.command[0] if service.command else ""
        if cwd is not None and not Path(cwd).is_dir():
            raise StartFailed(f"no directory {cwd}")
        if shutil.which(program, path=env.get("PATH")) is None and not (
            cwd is not None and shutil.which(str(Path(cwd) / program))
        ):
            raise StartFailed(f"no program {program!r} that can be run")
        try:
            process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"cannot run {program}: {error.strerror}") from None
        self._guard.add(process.pid)
        return ServiceProcess(
            process, self._guard, self._log_dir / f"{service.name}.log", output, service.port
        )


class ServiceProcess:
    """One run of a command: a `gpu_node.runtime.Instance`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        guard: Guard,
        log_file: Path,
        output: Output,
        port: int,
    ) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self._process = process
        self._guard = guard
        self._stop_by: float | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._reader = threading.Thread(
            target=_read_output, args=(process, log_file, output), daemon=True
        )
        self._reader.start()

    def wait(self) -> str:
        """Block until the whole group is gone; how the command ended.

        When the command ends by itself, what it left in its group is killed at once: it may hold
        the port or the GPU's memory. When it was asked to end, its group gets the same time.
        """
        pid = self._process.pid
        if hasattr(os, "waitid") and self._process.returncode is None:
            # Not reaped yet, so that the group's number cannot be anybody else's.
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
            self._guard.discard(pid)
        # The last words matter most after a crash; but a process that left the group on purpose
        # may hold the pipe for ever.
        self._reader.join(timeout=1.0)
        return _describe(code)

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
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


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


def _read_output(process: subprocess.Popen[bytes], log_file: Path, output: Output) -> None:
    """Pass on lines until the pipe ends; progress bars redraw a line after a carriage return."""
    assert process.stdout
    log = _LogFile(log_file)
    pending = b""
    with process.stdout as pipe:
        while chunk := pipe.read(65536):
            pending += chunk
            start = 0
            for end in _ENDS.finditer(pending):
                text = _decode(pending[start : end.start()])
                start = end.end()
                progress = parse_progress(text)
                if progress is not None:
                    output.progress(progress)
                # A line that is drawn over again is of no use in a log.
                if text and end.group() != b"\r":
                    log.write(text)
                    output.line(text)
            pending = pending[start:]
            if len(pending) > MAX_LINE_BYTES:
                text, pending = _decode(pending[:MAX_LINE_BYTES]), b""
                log.write(text)
                output.line(text)
            elif b"%" in pending and (progress := parse_progress(_decode(pending))):
                output.progress(progress)
    if pending:
        log.write(_decode(pending))
        output.line(_decode(pending))
    log.close()


def _decode(line: bytes) -> str:
    text = line[:MAX_LINE_BYTES].decode("utf-8", "replace")
    return _CONTROL.sub("", text).rstrip()


class _LogFile:
    """Lines in a file that stays small; a disk that is full does not stop the service."""

    def __init__(self, path: Path) -> None:
        self._handler: logging.Handler
        try:
            self._handler = RotatingFileHandler(
                path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8"
            )
        except OSError:
            self._handler = logging.NullHandler()

    def write(self, text: str) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self._handler.close()
