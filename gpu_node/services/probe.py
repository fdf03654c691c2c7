"""Ask a service over HTTP whether it is ready and how much it generates."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from gpu_node.machine.nvidia import GpuView
from qwenctl.lib.http_probe import IDENTITY, ProbeResult, probe, read_bounded
from qwenctl.protocol.messages import Activity, GpuFigures, Readiness

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


@dataclass(frozen=True)
class Work:
    """What a service says of its work."""

    count: int = 0
    """Generations running now."""
    progress: float | None = None
    """The sum of its counters of tokens and requests; None: it has none."""
    known: bool = True
    """Whether it has said so lately."""


def probe_active(
    http: requests.Session, base: str, activity: Activity, timeout: float
) -> int | None:
    """Return how many generations run now; None if the service does not tell."""
    work = probe_work(http, base, activity, timeout)
    return work.count if work else None


def probe_work(
    http: requests.Session, base: str, activity: Activity, timeout: float
) -> Work | None:
    """Return how much the service generates; None if it does not tell.

    Gradio's ``/gradio_api/queue/status`` tells how many wait in its queue, not how many run.
    """
    try:
        response = http.get(
            base + activity.path,
            timeout=timeout,
            allow_redirects=False,
            stream=True,
            # Many servers log every request; the agent's name says where it comes from.
            headers={"User-Agent": AGENT, "Connection": "close", **IDENTITY},
        )
        with contextlib.closing(response):
            if response.status_code >= 400:
                return None
            body = read_bounded(response, MAX_BODY_BYTES, 3 * timeout)
        if activity.metrics:
            text = body.decode("utf-8", "replace")
            count = sum_samples(text, activity.metrics)
            return None if count is None else Work(count, sum_counters(text, activity.metrics))
        told = json.loads(body)
        count = _count(float(told["active"] if "active" in told else told["queue_size"]))
        return None if count is None else Work(count)
    except (requests.RequestException, HTTPError, OSError):
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # whatever a service has written there


def sum_samples(text: str, names: tuple[str, ...]) -> int | None:
    """Return the sum of the named samples in Prometheus text; None if there are none."""
    values = [value for name, value in _samples(text, names) if name in names]
    return _count(sum(values)) if values else None


def sum_counters(text: str, gauges: tuple[str, ...]) -> float | None:
    """Return the sum of the counters that move while a server generates; None if there are none.

    They are those of tokens, requests and steps that begin as one of these gauges does, up to the
    first colon or underscore: vLLM's ``vllm:generation_tokens_total``, SGLang's, llama.cpp's, TGI's
    ``tgi_batch_inference_count``, Triton's ``nv_inference_count``. Other counters of the same
    server may move by themselves, as Triton's ``nv_energy_consumption``.
    """
    kinds = dict(_TYPE.findall(text))
    families = tuple({match[0] for gauge in gauges if (match := _FAMILY.match(gauge))})
    values = [
        value
        for name, value in _samples(text, families)
        if name not in gauges and _counts(name, kinds) and math.isfinite(value)
    ]
    return sum(values) if values else None


_TYPE = re.compile(r"^# TYPE (\S+) (\S+)", re.MULTILINE)
_FAMILY = re.compile(r"[^:_]+[:_]")
_MOVES = re.compile(r"token|request|infer|iteration|decode|generat|prefill|step|success")
_PART = re.compile(r"_(total|count|sum)$")


def _counts(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether a sample is a counter of work, or a histogram's number or sum."""
    if not _MOVES.search(name):
        return False
    base = _PART.sub("", name)
    kind = kinds.get(name) or kinds.get(base)
    if kind is None:
        return base != name
    return kind == "counter" or (kind in ("histogram", "summary") and base != name)


def _samples(text: str, starts: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield name and value of each sample in Prometheus text whose name begins like that."""
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith(starts):
            continue
        name = line.split("{", 1)[0].split(None, 1)[0]
        # NAME{label="…"} VALUE [TIMESTAMP]; a label's text may hold anything, braces too.
        rest = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        try:
            yield name, float(rest.split()[0])
        except (ValueError, IndexError):
            continue


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
            for gpu in used(view, self._names)
            if gpu.utilisation_percent is not None
        ]
        if view.note or not known:
            self._blind += 1
            if self._blind >= BLIND:
                self._busy = 0
        else:
            self._blind = 0
            self._busy = self._busy + 1 if max(known) >= self.activity.gpu_percent else 0
        return int(self._busy >= self.activity.gpu_samples)


def used(view: GpuView, names: Sequence[str]) -> list[GpuFigures]:
    """Return the figures of the GPUs that a service uses, named as in `Container.gpus`."""
    return [gpu for gpu in view.gpus if "all" in names or gpu.index in names or gpu.uuid in names]


def _count(value: float) -> int | None:
    """Round up to a whole number of generations."""
    return max(0, math.ceil(value)) if math.isfinite(value) else None
