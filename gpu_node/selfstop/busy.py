"""Whether anything generates on this node, asked from outside of whoever runs the services.

For those who are about to stop the instance and have not watched the services themselves: the
watchdog, and an agent that has just been started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import requests

from gpu_node.machine.nvidia import GpuWatch
from gpu_node.services.probe import probe_active
from gpu_node.services.runtime import base_url_of
from qwenctl.protocol.messages import Spec

__all__ = ["BUSY_PERCENT", "busy", "busy_for_a_while", "read_spec"]

BUSY_PERCENT = 10.0
"""GPU utilisation that counts as work where no service says what it does."""

FRESH = 30.0
"""Seconds after which GPU figures mean nothing any more: the driver may hang."""

SAMPLES, PAUSE = 3, 5.0
"""How often it is asked, and the seconds between: one moment between two requests is no rest."""


def read_spec(file: Path) -> Spec | None:
    """What the agent was told last to run; None if there is nothing of use."""
    try:
        return Spec.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def busy_for_a_while(
    spec: Spec | None, gpus: GpuWatch, sleep: Callable[[float], None] = time.sleep
) -> str:
    """What generates in one of several looks, for a person; empty if there is nothing."""
    for look in range(SAMPLES):
        if look:
            sleep(PAUSE)
        if found := busy(spec, gpus):
            return found
    return ""


def busy(spec: Spec | None, gpus: GpuWatch) -> str:
    """What generates now, for a person; empty if nothing does.

    Services are asked as their spec says. The GPUs count, too, by the threshold of a service that
    has one, and by `BUSY_PERCENT` if a service does not tell: that errs on the side of going on.
    Figures that are old, because the driver hangs, do not.
    """
    thresholds = [] if spec is not None and spec.services else [BUSY_PERCENT]
    with requests.Session() as http:
        http.trust_env = False  # a proxy variable is not meant for loopback
        for service in spec.services if spec is not None else ():
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
