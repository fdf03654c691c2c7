"""Questions to a service, over HTTP on loopback: are you ready, are you generating?"""

from __future__ import annotations

import contextlib
import json
import math

import requests
from urllib3.exceptions import HTTPError

from qwenctl.wire import Activity, Readiness

__all__ = ["probe_active", "probe_ready", "sum_samples"]

MAX_BODY_BYTES = 4 * 1024 * 1024


def probe_ready(http: requests.Session, base: str, readiness: Readiness) -> bool:
    """Whether a GET of the readiness path answers with a status below 400."""
    try:
        with contextlib.closing(_get(http, base + readiness.path, readiness.timeout)) as response:
            return response.status_code < 400
    except requests.RequestException:
        return False


def probe_active(
    http: requests.Session, base: str, activity: Activity, timeout: float
) -> int | None:
    """How many generations run now; None if the service does not tell."""
    try:
        with contextlib.closing(_get(http, base + activity.path, timeout)) as response:
            if response.status_code >= 400:
                return None
            body = response.raw.read(MAX_BODY_BYTES, decode_content=True)
        if activity.metrics:
            return sum_samples(body.decode("utf-8", "replace"), activity.metrics)
        return _count(float(json.loads(body)["active"]))
    except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError):
        return None


def sum_samples(text: str, names: tuple[str, ...]) -> int | None:
    """The sum of the named samples in Prometheus text, all labels; None if there is not one."""
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


def _count(value: float) -> int | None:
    """A whole number of generations; a part of one is one."""
    return max(0, math.ceil(value)) if math.isfinite(value) else None


def _get(http: requests.Session, url: str, timeout: float) -> requests.Response:
    return http.get(
        url,
        timeout=timeout,
        allow_redirects=False,
        stream=True,
        # Many servers log every request; this says whose it is.
        headers={"User-Agent": "qwenctl-node", "Connection": "close"},
    )
