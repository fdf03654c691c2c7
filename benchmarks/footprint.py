"""Idle footprint: memory and CPU of `qwenctl serve` with its embedded Valkey while the GPU sleeps.

The peer, in the same run, is a Python process that has imported the same libraries and does nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.harness import Report, Row, children, main
from benchmarks.product import product

LIBRARIES = "a2wsgi, aiohttp, flask, httptools, prometheus_client, pydantic, redis, uvicorn, uvloop"

SETTLE = 5.0
"""Seconds after the start before counting: imports and the first reads are not idling."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch")


def run(given: argparse.Namespace) -> Report:
    seconds = min(given.seconds, 10.0) if given.quick else given.seconds
    report = Report("footprint", "Idle footprint", {"seconds": seconds, "gpus": 1})
    with product(_unused, core=None) as running, children() as spawn:
        peer = spawn(
            [sys.executable, "-c", f"import {LIBRARIES}; print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert peer.stdout is not None
        peer.stdout.readline()  # it has imported everything
        running.wait_phase("off")
        time.sleep(SETTLE)
        watched = {**running.processes(), "peer: imports only": psutil.Process(peer.pid)}
        before = {name: _cpu(process) for name, process in watched.items()}
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        figures = {
            name: (
                process.memory_info().rss / 2**20,
                100 * (_cpu(process) - before[name]) / passed,
            )
            for name, process in watched.items()
        }
    ours = [figure for name, figure in figures.items() if not name.startswith("peer")]
    figures["sum, without the peer"] = (sum(f[0] for f in ours), sum(f[1] for f in ours))
    floor = figures["peer: imports only"][0]
    rows: list[Row] = [
        {
            "process": name,
            "RSS MiB": round(rss, 1),
            "of the peer": round(rss / floor, 2),
            "CPU %": round(cpu, 2),
        }
        for name, (rss, cpu) in figures.items()
    ]
    report.tables["GPU off, nobody there"] = rows
    return report


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _unused(_: Path) -> tuple[Sequence[str], int]:
    return ["false"], 1  # the GPU stays off


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
