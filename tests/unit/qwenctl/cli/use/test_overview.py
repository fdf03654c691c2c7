"""Several GPUs in a line each, and text that fits a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from qwenctl.cli.use.overview import INDENT, fit, overview, wrapped
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.failures import Failure
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import full_status

NOW = 1_000_000.0


def state(name: str = "main", phase: str = "off", **more: Any) -> dict[str, Any]:
    leases, blocks = more.pop("leases", ()), more.pop("blocks", ())
    own = {"phase": phase, "since": str((NOW - 90) * 1000), "observed": "stopped", **more}
    lock = {"owner": "p", "expiry": str((NOW + 10) * 1000)}
    snapshot = Snapshot(name, NOW, own, tuple(leases), tuple(blocks), lock=lock)
    return full_status(snapshot, [], GpuConfig())


def line(**more: Any) -> str:
    return next(overview({"main": state(**more)}))


def lease(name: str = "pin:ada") -> Lease:
    return Lease(name, NOW + 600, since=NOW - 5, actor="ada")


def test_a_line_a_gpu() -> None:
    shown = list(overview({"main": state(), "second": state("second", "ready", leases=[lease()])}))
    assert shown == [
        "main    off 1 min 30 s    nobody needs it",
        "second  ready 1 min 30 s  used by ada (qwenctl up), off in 10 min unless used",
    ]


FAILURE = Failure("no_capacity", "no g5 is free", 2, NOW + 30, instance_is_bad=False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"phase": "failed", "failure": FAILURE.encode()}, "no such machine free: no g5 is free"),
        ({"blocks": [lease("maintenance:ada")]}, "blocked by ada (qwenctl block), for another 10"),
        ({"observe_error": "AccessDenied"}, "cloud: AccessDenied"),
        ({"phase": "booting", "overdue_at": str(NOW * 1000), "told_urls": "http://x"}, "http://x"),
        (
            {"phase": "stopping", "call_error": "no", "call_code": "denied", "refused_since": "1"},
            "still on: the cloud refuses the stop: no",
        ),
        ({"observed": ""}, "not known: the cloud has not been asked yet"),
    ],
)
def test_what_matters_most(more: dict[str, Any], words: str) -> None:
    if more.get("observed") == "":
        found = state()
        found["cloud"]["state"] = None
        assert next(overview({"main": found})) == f"main  ?  {words}"
    else:
        assert words in line(**more)


def test_a_removed_gpu() -> None:
    assert "the settings no longer have it" in next(overview({"m": {**state(), "removed": True}}))


@pytest.mark.parametrize("width", [50, 80])
def test_a_line_is_as_wide_as_the_terminal(width: int) -> None:
    gpus = {name: state(name, observe_error="x" * 300) for name in ("a", "a-longer-name")}
    assert [len(text) for text in overview(gpus, width)] == [width, width]


def test_what_fits_is_cut_to_the_terminal() -> None:
    lines = [f"line {number} " + "x" * 100 for number in range(40)]
    shown = fit(lines, (80, 24))
    assert len(shown) == 23
    assert max(map(len, shown)) == 80
    assert shown[-1] == "… 18 more lines"
    assert fit(["short"], (80, 24)) == ["short"]


def test_colours_survive_a_cut() -> None:
    [shown] = fit(["\x1b[31m" + "x" * 100 + "\x1b[0m"], (20, 24))
    assert shown.startswith("\x1b[31m")
    assert shown.count("x") == 19


def test_a_long_text_goes_on_below_its_label() -> None:
    first, second, *_ = wrapped(["  cloud      " + "word " * 30], 60)
    assert first.startswith("  cloud      word")
    assert second.startswith(" " * INDENT + "word")
    assert len(first) <= 60
