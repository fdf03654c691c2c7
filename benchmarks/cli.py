"""Wall time of `qwenctl --help` and `qwenctl status` against processes that only import libraries.

`--help` may take 1.5 × ``import typer``; `status`, with its server running, 1.5 × ``import typer,
redis, pydantic``.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import (
    HERE,
    CannotMeasure,
    Report,
    Row,
    Target,
    alternate,
    main,
    median,
    percentile,
)
from benchmarks.product import PROGRAM, environment, product

LIMIT = 1.5


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=25, help="runs of each command")


def run(given: argparse.Namespace) -> Report:
    runs = min(given.runs, 7) if given.quick else given.runs
    report = Report("cli", "Command line", {"runs": runs})
    with product(_unused, core=None) as running:
        commands: dict[str, list[str]] = {
            "qwenctl --help": [PROGRAM, "--help"],
            "import typer": [sys.executable, "-c", "import typer"],
            "qwenctl status": [PROGRAM, "status", "--config", str(running.config)],
            "import typer, redis, pydantic": [
                sys.executable,
                "-c",
                "import typer, redis, pydantic",
            ],
        }
        subjects = {name: functools.partial(_time, line) for name, line in commands.items()}
        for _ in alternate(2, subjects):
            pass  # warm the file cache and write the .pyc files
        times: dict[str, list[float]] = {name: [] for name in commands}
        for name, seconds in alternate(runs, subjects):
            times[name].append(seconds)
    rows: list[Row] = []
    pairs = {"qwenctl --help": "import typer", "qwenctl status": "import typer, redis, pydantic"}
    for ours, peer in pairs.items():
        ratio = median(times[ours]) / median(times[peer])
        for name in (ours, peer):
            rows.append(
                {
                    "command": name,
                    "median ms": round(1000 * median(times[name]), 1),
                    "p90 ms": round(1000 * percentile(times[name], 90), 1),
                    "ratio": round(ratio, 2) if name == ours else 1.0,
                }
            )
        report.targets.append(Target(f"{ours} / {peer}", round(ratio, 2), LIMIT))
    report.tables["wall time"] = rows
    return report


def _time(command: Sequence[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment(), capture_output=True, text=True, timeout=60
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise CannotMeasure(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return took


def _unused(_: Path) -> tuple[Sequence[str], int]:
    return ["false"], 1  # the GPU stays off


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
