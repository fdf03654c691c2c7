"""Simulate a virtual machine for the local provider.

The program takes time to boot, runs the GPU's agent, or the program of an image without agent, and
takes time to stop. It uses the standard library only, so that it is small and starts fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from qwenctl.lib.private_file import open_private, read_private, write_private

EXIT_POWER_OFF = 70
"""The agent's exit code that asks to power the machine off (`gpu_node.selfstop.deadman`)."""

AGENT_PAUSE = 1.0
"""Seconds from the agent's crash to its next start."""

RECORD_CHECK = 5.0
"""Seconds between two checks that this machine's record still exists."""

AGENT_STOP = 60.0
"""Seconds for the agent to stop its services before it is killed."""

# Kills this machine's process group once the pipe's other end is closed, that is, once this process
# was killed. A word on the pipe before that cancels it.
_GUARD = """
trap '' HUP INT TERM
read -r word && exit
kill -s KILL -- "-$1"
"""

FILES = ("lock", "status.json", "starts.log", "stops.log", "logs", "work", "agent")
"""The names in an instance's directory."""

State = Literal["starting", "running", "stopping", "stopped"]


@contextlib.contextmanager
def locked(directory: Path, patience: float = math.inf) -> Iterator[None]:
    """Hold the instance's lock, under which its record is written.

    Raises:
        BlockingIOError: another process held it for ``patience`` seconds.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(open_private(directory / "lock", flags), "a") as file:
        give_up = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.01)
        yield


class Record:
    """The "cloud's" record of the instance: a small JSON file, replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "status.json"

    def read(self) -> dict[str, Any]:
        """Return the record; empty if there is none yet.

        Raises:
            OSError: it cannot be read, or is damaged. Nothing is known of the instance then.
        """
        try:
            record = json.loads(read_private(self._file))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError:
            record = None
        known = isinstance(record, dict) and record.get("state") in get_args(State)
        if not known or not isinstance(record.get("pid"), int):
            raise OSError(errno.EINVAL, "the record is damaged", str(self._file))
        return dict(record)

    def write(self, *, boot_id: str, state: State, pid: int, reason: str = "") -> None:
        """Replace the record, under the lock."""
        record = {
            "state": state,
            "boot_id": boot_id,
            "pid": pid,
            "born": _born(pid),
            "since": time.time(),
            "reason": reason,
        }
        write_private(self._file, json.dumps(record))

    def alive(self, record: Mapping[str, Any]) -> bool:
        """Whether the recorded process lives: ids are reused, start times are not.

        Raises:
            OSError: this machine cannot tell.
        """
        born = _born(int(record.get("pid", 0)))
        return born != "" and born == record.get("born")


def _born(pid: int) -> str:
    """Return the start of a living process, as unique text; empty if it is dead.

    Raises:
        OSError: this machine cannot tell, for want of descriptors or rights.
    """
    if pid <= 0:
        return ""
    if not sys.platform.startswith("linux"):
        import psutil

        try:
            process = psutil.Process(pid)
            return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time()}"
        except psutil.NoSuchProcess:
            return ""
        except psutil.Error as error:
            raise OSError(errno.EACCES, str(error)) from None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # proc_pid_stat(5): the name, in parentheses, may hold anything; state and start time follow.
    fields = stat.rpartition(b")")[2].split()
    return "" if fields[0] in (b"Z", b"X") else f"{boot}:{int(fields[19])}"


class Machine:
    """One boot of the machine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._directory: Path = options.directory
        self._record = Record(self._directory)
        self._booted_at = time.monotonic()
        # Events of the machine. SimpleQueue is reentrant, so that a signal handler may use it:
        # https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put.
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._agent: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Boot, run until stopped, stop, and return the exit code."""
        with contextlib.suppress(PermissionError):  # already the leader
            os.setsid()
        signal.signal(signal.SIGTERM, lambda *_: self._events.put("stop"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not self._claim():
            return 1
        guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        reason = ""
        if self._boot():
            reason = self._work()
        self._shut_down(reason)
        with contextlib.suppress(OSError):
            guard.communicate(b"over\n")
        return 0

    def _claim(self) -> bool:
        """Make the record be of this boot; return False if another machine has it.

        The starting process writes the record while it holds the lock. If it was killed before
        that, the machine writes it.
        """
        with locked(self._directory):
            record = self._record.read()
            if record.get("boot_id") == self._options.boot_id:
                return True
            if record.get("state", "stopped") != "stopped" and self._record.alive(record):
                _say("another machine has been started meanwhile")
                return False
            self._enter("starting")
            return True

    def _boot(self) -> bool:
        """Wait as long as booting takes; return False if stopped meanwhile."""
        pause = None if self._options.boot_hangs else self._options.boot_seconds
        if self._next(pause) is not None:
            return False
        with locked(self._directory):
            with contextlib.suppress(OSError):  # a stop sends a signal as well
                if self._record.read().get("state") == "stopping":
                    return False
            self._enter("running")
        return True

    def _is_lost(self) -> bool:
        """Return whether the record is surely gone, or another machine's."""
        try:
            return bool(self._record.read().get("boot_id") != self._options.boot_id)
        except OSError:  # not now: no reason to end running work
            return False

    def _work(self) -> str:
        """Run the agent until the machine stops; return the reason of an unrequested stop."""
        dies_at = self._booted_at + self._options.boot_seconds + (self._options.dies_after or 0.0)
        agent_due: float | None = time.monotonic()
        while True:
            now = time.monotonic()
            if self._options.dies_after is not None and now >= dies_at:
                os.killpg(0, signal.SIGKILL)
            if agent_due is not None and now >= agent_due:
                self._start_program()
                agent_due = None
            if self._is_lost():
                _say("this machine's directory has been removed: nobody could find and stop it")
                os.killpg(0, signal.SIGKILL)
            times = [now + RECORD_CHECK] if agent_due is None else [agent_due]
            if self._options.dies_after is not None:
                times.append(dies_at)
            event = self._next(max(0.0, min(times) - now))
            if event == "stop":
                return ""
            if event == "agent ended" and self._agent is not None:
                if self._agent.returncode == EXIT_POWER_OFF and not self._options.no_agent:
                    return "switched itself off: no contact to any proxy and nothing running"
                what = "program" if self._options.no_agent else "agent"
                _say(f"the {what} ended with code {self._agent.returncode}; starting it again")
                agent_due = time.monotonic() + AGENT_PAUSE

    def _shut_down(self, reason: str) -> None:
        with locked(self._directory):
            self._enter("stopping", reason)
        if self._agent is not None and self._agent.poll() is None:
            self._agent.terminate()
            try:
                self._agent.wait(AGENT_STOP)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        time.sleep(self._options.stop_seconds)
        with locked(self._directory):
            self._enter("stopped", reason)

    def _next(self, timeout: float | None) -> str | None:
        """Return the next event, or None after ``timeout`` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _enter(self, state: State, reason: str = "") -> None:
        _say(state + (f": {reason}" if reason else ""))
        self._record.write(
            boot_id=self._options.boot_id, state=state, pid=os.getpid(), reason=reason
        )

    def _start_program(self) -> None:
        if not self._options.no_agent:
            self._start_agent()
        elif self._options.program:
            log = self._directory / "logs" / "program.log"
            try:
                self._start(self._options.program, os.environ, log)
            except OSError as error:
                _say(f"cannot run {self._options.program[0]}: {error.strerror}")

    def _start_agent(self) -> None:
        settings = {
            "GPU": self._options.gpu,
            "BOOT_ID": self._options.boot_id,
            "BOOTED_AT": str(self._booted_at),
            "PROXY_URLS": json.dumps(self._options.proxy_url),
            "STATE_DIR": str(self._directory / "agent"),
            "LOG_DIR": str(self._directory / "logs"),
            "DEAD_MAN": str(self._options.dead_man),
            "KEEP_CONTAINERS": "false",  # a machine that is off runs nothing
        }
        if self._options.node_secret_file:
            settings["NODE_SECRET_FILE"] = self._options.node_secret_file
        env = {f"QWENCTL_NODE__{key}": value for key, value in settings.items()}
        # Further settings, for experiments; those above win.
        more = self._directory / "node.toml"
        config = ["--config", str(more)] if more.exists() else []
        command = [sys.executable, "-m", "gpu_node", *config]
        self._start(command, {**os.environ, **env}, self._directory / "logs" / "agent.log")

    def _start(self, command: Sequence[str], env: Mapping[str, str], log_file: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_private(log_file, flags), "a") as log:
            agent = self._agent = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def wait() -> None:
            agent.wait()
            self._events.put("agent ended")

        threading.Thread(target=wait, daemon=True).start()


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run a machine until it is stopped, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qwenctl.clouds.local.machine",
        description="Plays a virtual machine: boots, runs qwenctl's agent, stops on SIGTERM.",
        epilog="""\
The machine keeps its state in DIRECTORY/status.json. Its agent reads further settings from
DIRECTORY/node.toml, if there is such a file. It exits when it is off:
by SIGTERM, or because its agent has asked for it with exit code 70.

example:
  python -m qwenctl.clouds.local.machine --directory /tmp/machine --gpu main \\
      --boot-id 0123456789abcdef --proxy-url http://127.0.0.1:8080 \\
      --node-secret-file ~/.local/state/qwenctl/node.secret --boot-seconds 3
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--directory", type=Path, required=True, help="the instance's directory")
    add("--gpu", required=True, help="the GPU's name")
    add("--boot-id", required=True, help="names this boot, 8 to 64 letters and digits")
    add("--proxy-url", action="append", required=True, help="where a proxy is; may be repeated")
    add("--node-secret-file", default="", help="else QWENCTL_NODE__NODE_SECRET must be set")
    add("--boot-seconds", type=float, default=3.0, help="from start to running")
    add("--stop-seconds", type=float, default=1.0, help="from the agent's end to stopped")
    add("--dead-man", type=float, default=600.0, help="seconds without contact until it goes off")
    add("--no-agent", action="store_true", help="run PROGRAM instead of the agent")
    add("--boot-hangs", action="store_true", help="never get to running")
    add("--dies-after", type=float, help="seconds after running: die at once")
    add("program", nargs="*", metavar="PROGRAM", help="with --no-agent, after --: what it runs")
    options = parser.parse_args(argv)
    options.directory = options.directory.absolute()
    try:
        (options.directory / "logs").mkdir(parents=True, exist_ok=True)
        return Machine(options).run()
    except OSError as error:
        _say(f"the machine cannot run: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
