"""The node's agent: how soon the proxy knows that a service is ready, and what the agent costs idle.

The service begins to listen `LOADS` seconds after its start, a little later at each boot, so that its
readiness falls anywhere between two probes; it notes the time. The proxy's event stream has the time
at which it took the GPU for ready. The peer of the footprint is a Python process that has imported
what the agent imports and does nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.harness import (
    HERE,
    Report,
    Row,
    Target,
    children,
    free_port,
    main,
    median,
    percentile,
)
from benchmarks.product import Product, product
from qwenctl.config.loading import load_config
from qwenctl.store.connect import connect
from qwenctl.store.store import Store

LIBRARIES = "docker, psutil, pydantic, pynvml, requests"
READY_LIMIT = 200.0  # ms, of the 99th percentile
LOADS = 1.5
SETTLE = 10.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--boots", type=int, default=50, help="how many boots")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch it idle")


def run(given: argparse.Namespace) -> Report:
    boots, seconds = (3, 5.0) if given.quick else (given.boots, given.seconds)
    report = Report("node", "Node agent", {"boots": boots, "seconds": seconds})
    waits: list[float] = []
    with product(_service, readiness="/health", core=None) as running, children() as spawn:
        config = load_config(str(running.config), env={})
        store = Store(connect(config), config.deployment)
        running.wait_phase("off")
        for number in range(boots):
            (running.directory / "load").write_text(f"{LOADS + 0.037 * (number % 27)}")
            running.wake()
            running.wait_phase("ready")
            waits.append(_wait(running, store))
            if number < boots - 1:
                running.cut()
        peer = spawn(
            [sys.executable, "-c", f"import {LIBRARIES}; print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert peer.stdout is not None
        peer.stdout.readline()
        agent = _agent(running)
        time.sleep(SETTLE)
        before, began = _cpu(agent), time.monotonic()
        time.sleep(seconds)
        cpu = 100 * (_cpu(agent) - before) / (time.monotonic() - began)
        rss = agent.memory_info().rss / 2**20
        floor = psutil.Process(peer.pid).memory_info().rss / 2**20
        store.close()
    p50, p99 = median(waits), percentile(waits, 99)
    ready: Row = {
        "step": "service listens → proxy says ready",
        "n": str(len(waits)),
        "p50 ms": round(p50, 1),
        "p99 ms": round(p99, 1),
        "max ms": round(max(waits), 1),
    }
    report.tables["milliseconds"] = [ready]
    idle: Row = {
        "process": "agent, service ready, nobody there",
        "RSS MiB": round(rss, 1),
        "of a Python with its imports": round(rss / floor, 2),
        "CPU %": round(cpu, 2),
    }
    report.tables["idle"] = [idle]
    report.targets.append(Target("listens → ready, p99 ms", round(p99, 1), READY_LIMIT))
    report.notes.append("with fewer than 100 values the p99 is the largest of them, or next to it")
    return report


def _service(directory: Path) -> tuple[Sequence[str], int]:
    port = free_port()
    program, log = str(HERE / "late_service.py"), str(directory / "listens.log")
    load = str(directory / "load")
    return [sys.executable, program, "--port", str(port), "--log", log, "--load", load], port


def _wait(running: Product, store: Store) -> float:
    """Milliseconds from listening to ready, by the clock of this machine."""
    listens = float((running.directory / "listens.log").read_text().split()[-1])
    ready = [
        event.time
        for event in store.events("main", 50)
        if event.kind == "transition" and event.fields["to"] == "ready"
    ]
    return 1000 * (ready[-1] - listens)


def _agent(running: Product) -> psutil.Process:
    for process in psutil.process_iter():
        try:
            state = process.environ().get("QWENCTL_NODE__STATE_DIR", "")
            if str(running.directory) in state and "gpu_node" in process.cmdline():
                return process
        except psutil.Error:
            continue
    raise LookupError("the agent is not there")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
