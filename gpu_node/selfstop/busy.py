"""Find out whether anything generates on this node, without the services' supervisors.

For the watchdog and an agent that has just been started, before they stop the instance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from pathlib import Path

import requests

from gpu_node.machine.nvidia import GpuWatch
from gpu_node.services.probe import probe_active
from gpu_node.services.runtime import base_url_of
from qwenctl.lib.private_file import read_private
from qwenctl.protocol.messages import Spec

BUSY_PERCENT = 10.0
"""GPU utilisation that counts as work where no service reports its own."""

FRESH = 30.0
"""Seconds after which GPU figures do not count: the driver may hang."""

SAMPLES, PAUSE = 3, 5.0
"""Looks, and seconds between two: a moment between two requests is not idleness."""


def read_spec(file: Path) -> Spec | None:
    """Return the last spec of the agent; None if there is none, or none that can be read."""
    try:
        return Spec.model_validate_json(read_private(file))
    except (OSError, ValueError):
        return None


def busy_for_a_while(
    spec: Spec | None,
    gpus: GpuWatch,
    sleep: Callable[[float], None] = time.sleep,
    *,
    doubted: Container[str] = (),
) -> str:
    """Return what generates in one of several looks, for a person; empty: nothing."""
    for look in range(SAMPLES):
        if look:
            sleep(PAUSE)
        if found := busy(spec, gpus, doubted):
            return found
    return ""


def busy(spec: Spec | None, gpus: GpuWatch, doubted: Container[str] = ()) -> str:
    """Return what generates now, for a person; empty: nothing.

    What services in ``doubted`` claim does not count (`gpu_node.services.evidence`).

    Services are probed by their spec. The GPUs count, too, by a service's own threshold, and by
    `BUSY_PERCENT` if a service does not report: that errs on the side of going on. Old figures, of
    a driver that hangs, do not count.
    """
    thresholds = [] if spec is not None and spec.services else [BUSY_PERCENT]
    with requests.Session() as http:
        http.trust_env = False  # a proxy variable is not meant for loopback
        for service in spec.services if spec is not None else ():
            if service.name in doubted:
                continue
            activity = service.activity
            active = None
            if activity.path:
                timeout = service.readiness.timeout
                active = probe_active(http, base_url_of(service), activity, timeout)
            if active:
                return f"{service.name}: {active} running"
            if activity.gpu_percent > 0:
                thresholds.append(activity.gpu_percent)
            elif active is None:
                thresholds.append(BUSY_PERCENT)
    if not thresholds:
        return ""
    view = gpus.look(patience=5.0)
    if view.note or (view.age or 0.0) >= FRESH:
        return ""
    loads = [gpu.utilisation_percent for gpu in view.gpus]
    load = max((load for load in loads if load is not None), default=0.0)
    return f"GPU utilisation {load:.0f} %" if load >= min(thresholds) else ""
