"""The pages' templates and statuses as the tests of pages render them."""

from __future__ import annotations

from typing import Any

from jinja2 import StrictUndefined

from proxy.control.i18n import text
from proxy.control.pages import environment
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import page_mode
from tests.support.paths import ROOT

PROXY = ROOT / "proxy"
LANGUAGES = ("en", "zh")
STEPS = ("request", "start", "boot", "load", "ready")


def status(phase: str = "off", active: str | None = None, **changes: Any) -> dict[str, Any]:
    """A status as /_qwenctl/api/status gives it: the steps before ``active`` are done."""
    at = STEPS.index(active) if active else 0
    steps = [
        {
            "key": key,
            "state": "active" if key == active else "done" if index < at else "todo",
            "seconds": 3.2 if index < at or key == active else None,
            "expected": None if key == "request" else 5.0,
        }
        for index, key in enumerate(STEPS)
    ]
    given = {
        "gpu": "main",
        "phase": phase,
        "wanted": active is not None,
        "steps": steps,
        "elapsed_seconds": 12.0 if active else None,
        "eta_seconds": 23.0 if active else None,
        "progress": None,
        "failure": None,
        "interruption": None,
        "note": "",
        "blocked": None,
        "wake_on": "visit",
        "may_wake": True,
        **changes,
    }
    blocks = (Lease("maintenance:ada", 1.0),) if given["blocked"] else ()
    node = {"interrupted_at": "0"} if given["interruption"] else {}
    if problem := given.get("problem"):
        node = {"version": "1", "error": problem, **node}
    snapshot = Snapshot("main", 0.0, {"phase": phase}, (), blocks, node)
    modes = {
        "mode": page_mode(snapshot, wanted=given["wanted"]),
        "mode_if_wanted": page_mode(snapshot, wanted=True),
    }
    return {**given, **modes}


PROGRESS = {"phase": "weights", "percent": 40.0, "eta": 75.0, "text": "shard 4 of 10"}


FAILURE = {"code": "no_capacity", "message": "sold out", "attempts": 2, "retry_in_seconds": 18.0}
INTERRUPTION = {"action": "stop", "seconds_left": 100.0}
BLOCK = {
    "kind": "maintenance",
    "by": "",
    "reason": "new driver",
    "seconds_left": 5400.0,
}


STATUSES = {
    "off": status(),
    "off, wanted": status(wanted=True, active="request"),
    "off, click": status(wake_on="click"),
    "off, never": status(wake_on="never"),
    "off, no access": status(may_wake=False),
    "off, no steps": status(steps=[]),
    "off, blocked": status(blocked=BLOCK),
    "off, blocked without end": status(
        blocked={"kind": "odd", "by": None, "reason": None, "seconds_left": None}
    ),
    "off, blocked by hours": status(
        blocked={**BLOCK, "kind": "off-hours", "by": "nights"}, after_block="restarts"
    ),
    "starting": status("starting", "start"),
    "starting, retry": status("starting", "start", failure=FAILURE, eta_seconds=None),
    "booting": status("booting", "boot"),
    "starting, another machine": status(
        "starting", "start", note="zone-b was started instead of spot: no stock <b>"
    ),
    "loading": status("loading", "load", progress=PROGRESS),
    "loading, no percent": status(
        "loading",
        "load",
        progress={"phase": "", "percent": None, "eta": None, "text": ""},
        eta_seconds=0.0,
    ),
    "loading, nearly": status("loading", "load", eta_seconds=2.0),
    "loading, not nearly": status("loading", "load", progress=PROGRESS, eta_seconds=2.0),
    "loading, troubled": status(
        "loading", "load", progress=PROGRESS, eta_seconds=None, problem="webui: exit status 1"
    ),
    "ready": status("ready", "ready"),
    "draining": status("draining"),
    "stopping": status("stopping"),
    "stopping, wanted": status("stopping", wanted=True),
    "interrupted": status("draining", interruption=INTERRUPTION),
    "interrupted, wanted": status(
        "draining", "request", interruption=INTERRUPTION, wanted=True, elapsed_seconds=3.0
    ),
    "failed": status("failed", failure={**FAILURE, "code": "new", "retry_in_seconds": None}),
    "failed, wanted": status("failed", failure=FAILURE, wanted=True),
}


TEMPLATES = environment(StrictUndefined)


def render(template: str, lang: str = "en", **variables: Any) -> str:
    return TEMPLATES.get_template(template).render(lang=lang, t=text(lang), **variables)


def waiting(
    given: dict[str, Any],
    lang: str = "en",
    gpu: str = "main",
    next_url: str = "/",
    **visitor: bool,
) -> str:
    return render("waiting.html", lang, gpu=gpu, status=given, next_url=next_url, **visitor)
