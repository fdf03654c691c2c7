"""The wake path: from the click to the provider's start call, and from ready to the first byte.

Click → start call: the waiting page's `POST /_qwenctl/api/wake` is sent; the local provider notes
the accepted call in ``starts.log``, once the instance's process exists. Ready → first byte: the
service answers the agent's readiness probe for the first time; the first byte of its answer reaches
a client whose POST has been held since before the start. A round trip to the proxy, measured in
between, gives the scale.
"""

from __future__ import annotations

import argparse
import http.client
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
    free_port,
    main,
    median,
    percentile,
    until,
)
from benchmarks.product import Product, product

CLICK_LIMIT, FIRST_BYTE_LIMIT = 50.0, 150.0  # ms, of the median


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wakes", type=int, default=30, help="how many clicks")
    parser.add_argument("--boots", type=int, default=15, help="how many whole boots")


def run(given: argparse.Namespace) -> Report:
    wakes, boots = (5, 3) if given.quick else (given.wakes, given.boots)
    report = Report("wake", "Wake path", {"wakes": wakes, "boots": boots})
    clicks: list[float] = []
    starts: list[float] = []
    firsts: list[float] = []
    trips: list[float] = []
    with product(_service, readiness="/health", core=None) as running:
        running.wait_phase("off")
        for _ in range(wakes):
            trips += [_round_trip(running) for _ in range(5)]
            click, start = _click(running)
            clicks.append(click)
            starts.append(start)
            running.cut()
        for _ in range(boots):
            firsts.append(_boot(running))
            running.cut()
    rows: list[Row] = []
    for name, values in {
        "click → start call": starts,
        "click → its answer": clicks,
        "ready → first byte": firsts,
        "round trip to the proxy": trips,
    }.items():
        p50, p99 = median(values), percentile(values, 99)
        rows.append(
            {
                "step": name,
                "n": str(len(values)),
                "p50 ms": round(p50, 1),
                "p99 ms": round(p99, 1),
                "of a round trip": round(p50 / median(trips), 1),
            }
        )
    report.tables["milliseconds"] = rows
    report.targets += [
        Target("click → start call, p50 ms", round(median(starts), 1), CLICK_LIMIT),
        Target("ready → first byte, p50 ms", round(median(firsts), 1), FIRST_BYTE_LIMIT),
    ]
    report.notes.append("with fewer than 100 values the p99 is the largest of them")
    return report


def _service(directory: Path) -> tuple[Sequence[str], int]:
    port = free_port()
    program, log = str(HERE / "timed_service.py"), str(directory / "ready.log")
    return [sys.executable, program, "--port", str(port), "--log", log], port


def _round_trip(running: Product) -> float:
    began = time.perf_counter()
    running.ask("GET", "/_qwenctl/healthz")
    return 1000 * (time.perf_counter() - began)


def _click(running: Product) -> tuple[float, float]:
    """Milliseconds from the click to its answer and to the provider's start call."""
    log = running.instance / "starts.log"
    before = len(_times(log))
    clicked = time.time()
    running.wake()
    answered = time.time()
    # The file says when, so it does not matter how late we look.
    until("the start call", lambda: len(_times(log)) > before)
    return 1000 * (answered - clicked), 1000 * (_times(log)[before] - clicked)


def _boot(running: Product) -> float:
    """Milliseconds from the service's readiness to the first byte at a client that was held."""
    log = running.directory / "ready.log"
    before = len(_times(log))
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    try:
        connection.request("POST", "/chat", b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()  # returns with the first bytes
        first = time.time()
        text = answer.read()
        if answer.status != 200:
            raise CannotMeasure(f"the held request was not answered: {answer.status} {text!r}")
    finally:
        connection.close()
    return 1000 * (first - _times(log)[before])


def _times(log: Path) -> list[float]:
    """The Unix times at the beginning of the lines."""
    if not log.exists():
        return []
    return [float(line.split()[0]) for line in log.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
