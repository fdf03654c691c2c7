"""What every benchmark needs: processes that surely end, ports, and a record of the figures."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console
from rich.table import Table

__all__ = [
    "HERE",
    "LOAD_CORE",
    "SERVER_CORE",
    "CannotMeasure",
    "Report",
    "Row",
    "Target",
    "alternate",
    "children",
    "end",
    "free_port",
    "main",
    "median",
    "need",
    "on_interrupt",
    "percentile",
    "pinned",
    "scratch",
    "text",
    "until",
    "wait_port",
]

HERE = Path(__file__).resolve().parent

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]
"""What is measured runs on the one, everything that helps measuring on the other."""

T = TypeVar("T")

Row = dict[str, "str | float | None"]


class CannotMeasure(Exception):
    """A program is missing, or something failed; the message says what, and how to mend it."""


@dataclass(frozen=True)
class Target:
    """A figure that the project has set itself."""

    what: str
    measured: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass
class Report:
    """The figures of one benchmark."""

    name: str
    title: str
    settings: dict[str, object]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the tables and the targets."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
        for title, rows in self.tables.items():
            table = Table(title=f"{self.title}: {title}", title_justify="left")
            for number, column in enumerate(rows[0]):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*(text(value) for value in row.values()))
            console.print(table)
        for target in self.targets:
            sign, mark = "≤" if target.at_most else "≥", "met" if target.met else "MISSED"
            console.print(
                f"{target.what}: {text(target.measured)} (target {sign} {target.limit:g}): {mark}"
            )
        for note in self.notes:
            console.print(f"note: {note}")

    def save(self, *, record: bool) -> Path:
        """Write ``results/NAME.json``, the committed record, or ``NAME.local.json``."""
        path = HERE / "results" / f"{self.name}{'' if record else '.local'}.json"
        path.parent.mkdir(exist_ok=True)
        data = {
            "benchmark": self.name,
            "title": self.title,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "machine": _machine(),
            "settings": self.settings,
            "tables": self.tables,
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            "notes": self.notes,
        }
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return path


def text(value: str | float | None) -> str:
    """A cell of a table: three digits, or all of a large number."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": len(_CORES),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def main(
    description: str,
    run: Callable[[argparse.Namespace], Report],
    options: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, run, show, save; the exit code (1: a program is missing or a figure cannot be had)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run, saved as NAME.local.json (not committed)"
    )
    options(parser)
    given = parser.parse_args(arguments)
    on_interrupt()
    try:
        load = psutil.getloadavg()[0]
        report = run(given)
        if load > len(_CORES) / 2:
            report.notes.append(f"other programs kept the machine busy (load {load:.1f} before)")
    except CannotMeasure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report.show()
    print(f"written: {report.save(record=not given.quick)}")
    return 0


def on_interrupt() -> None:
    """Have SIGINT and SIGTERM end the program in order; a second one does not disturb the end."""

    def interrupted(number: int, _: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, interrupted)


def need(program: str, how: str) -> str:
    """The path of a program.

    Raises:
        CannotMeasure: it is not installed.
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if not found:
        raise CannotMeasure(f"{program} is not installed: {how}")
    return found


def alternate(rounds: int, subjects: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """Run the subjects A B C A B C …, so that a drifting machine is unfair to none of them."""
    for _ in range(rounds):
        for name, measure in subjects.items():
            yield name, measure()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: with few values the 99th is the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, bound to one core where the system can do that."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core), *command] if taskset else list(command)


def free_port() -> int:
    """A port that nobody has, below those that the system gives to outgoing connections.

    The system's own choice would not do: by the time the server binds it, one of the thousands of
    connections that a benchmark opens may have got it.
    """
    for port in random.sample(range(12000, 32000), 100):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise CannotMeasure("no free port between 12000 and 32000")


def until(what: str, ready: Callable[[], bool], seconds: float = 30.0, pause: float = 0.02) -> None:
    """Wait for something that cannot be waited for by an event, such as a stranger's port.

    Raises:
        CannotMeasure: it did not come.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{what} did not come within {seconds:.0f} s")
        time.sleep(pause)


def wait_port(
    port: int, process: subprocess.Popen[bytes], what: str, seconds: float = 20.0
) -> None:
    """Wait until something listens on a port of this machine.

    Raises:
        CannotMeasure: it does not, or the process has ended.
    """

    def listens() -> bool:
        if process.poll() is not None:
            raise CannotMeasure(
                f"{what} ended with code {process.returncode}; run it by hand to see why"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process.poll() is None  # somebody else's server would not do
        return False

    until(f"{what} on port {port}", listens, seconds)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary directory. Processes that still mention it when it goes are ended first."""
    path = Path(tempfile.mkdtemp(prefix="qwenctl-bench-"))
    try:
        yield path
    finally:
        end(_mentioning(path))
        shutil.rmtree(path, ignore_errors=True)


def _mentioning(path: Path) -> list[psutil.Process]:
    """Processes of ours with the directory on their command line or as working directory.

    The agent and the embedded Valkey leave our process tree on purpose, so that the tree is not
    where to look for them.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and (
                any(str(path) in part for part in process.cmdline())
                or Path(process.cwd()).is_relative_to(path)
            ):
                found.append(process)
    return found


def end(processes: Sequence[psutil.Process], seconds: float = 10.0) -> None:
    """Ask processes to end, wait, and kill those that do not."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=seconds)


@contextlib.contextmanager
def children() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Yields a ``Popen`` whose processes, and theirs, are ended with the block.

    Each has a session of its own, so that Ctrl-C reaches only us and the end is always orderly.
    """
    started: list[psutil.Process] = []

    def spawn(command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        settings: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "start_new_session": True,
            **options,
        }
        process = subprocess.Popen(command, **settings)  # type: ignore[call-overload]
        started.append(psutil.Process(process.pid))
        return process  # type: ignore[no-any-return]

    try:
        yield spawn
    finally:
        everybody: list[psutil.Process] = []
        for process in started:
            with contextlib.suppress(psutil.Error):
                everybody += [process, *process.children(recursive=True)]
        end(everybody)
