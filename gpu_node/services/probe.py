"""Ask a service over HTTP whether it is ready and how much it generates."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from gpu_node.machine.nvidia import GpuView
from qwenctl.lib.http_probe import ProbeResult, probe
from qwenctl.protocol.messages import Activity, Readiness

AGENT = "qwenctl-node"

MAX_BODY_BYTES = 4 * 1024 * 1024

BLIND = 3
"""Looks without figures of the GPUs until they count as idle."""


def probe_ready(base: str, readiness: Readiness) -> ProbeResult:
    """Send a GET of the readiness path to the service at ``base``."""
    where = urlsplit(base)
    answer, _ = probe(
        where.hostname or "",
        where.port or 80,
        readiness.path,
        timeout=readiness.timeout,
        connect_timeout=readiness.timeout,
        agent=AGENT,
    )
    return answer


def probe_active(
    http: requests.Session, base: str, activity: Activity, timeout: float
) -> int | None:
    """Return how many generations run now; None if the service does not tell.

    Gradio's ``/gradio_api/queue/status`` tells how many wait in its queue, not how many run.
    """
    try:
        response = http.get(
            base + activity.path,
            timeout=timeout,
            allow_redirects=False,
            stream=True,
            # Many servers log every request; the agent's name says where it comes from.
            headers={"User-Agent": AGENT, "Connection": "close"},
        )
        with contextlib.closing(response):
            if response.status_code >= 400:
                return None
            body = response.raw.read(MAX_BODY_BYTES, decode_content=True)
        if activity.metrics:
            return sum_samples(body.decode("utf-8", "replace"), activity.metrics)
        told = json.loads(body)
        return _count(float(told["active"] if "active" in told else told["queue_size"]))
    except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError):
        return None


def sum_samples(text: str, names: tuple[str, ...]) -> int | None:
    """Return the sum of the named samples in Prometheus text; None if there are none."""
    values = []
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith(names):
            continue
        name = line.split("{", 1)[0].split(None, 1)[0]
        if name not in names:
            continue
        # NAME{label="…"} VALUE [TIMESTAMP]; a label's text may hold anything, braces too.
        rest = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        try:
            values.append(float(rest.split()[0]))
        except (ValueError, IndexError):
            continue
    return _count(sum(values)) if values else None


class GpuLoad:
    """Judges by GPU utilisation whether a service is generating, once each heartbeat.

    Args:
        activity: how busy, and for how many heartbeats in a row.
        names: the GPUs that the service uses, as in `Container.gpus`.
    """

    def __init__(self, activity: Activity, names: Sequence[str]) -> None:
        self.activity = activity
        self._names = names
        self._busy = 0
        self._blind = 0

    def look(self, view: GpuView) -> int:
        """Return 1 if one of the GPUs has been busy for long enough, else 0.

        Figures that are missing or old keep the last judgement for `BLIND` heartbeats.
        """
        known = [
            gpu.utilisation_percent
            for gpu in view.gpus
            if gpu.utilisation_percent is not None
            and ("all" in self._names or gpu.index in self._names or gpu.uuid in self._names)
        ]
        if view.note or not known:
            self._blind += 1
            if self._blind >= BLIND:
                self._busy = 0
        else:
            self._blind = 0
            self._busy = self._busy + 1 if max(known) >= self.activity.gpu_percent else 0
        return int(self._busy >= self.activity.gpu_samples)


def _count(value: float) -> int | None:
    """Round up to a whole number of generations."""
    return max(0, math.ceil(value)) if math.isfinite(value) else None
