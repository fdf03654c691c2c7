"""Boots that fail: a clear reason, retried with backoff while somebody waits, then off."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.parallel import at_once

RETRY = 0.5


@dataclass(frozen=True)
class Case:
    """One way to fail."""

    code: str
    says: str
    gpu: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    starts: bool = True
    """Whether it is started each time, and so has to be stopped."""
    dies: bool = False
    """Whether it is gone by itself and needs no stop."""


CASES = {
    "boot hangs": Case(
        "start_timeout",
        "still starting 1 s after the start call",
        {"local": {"fail": "boot_hangs"}, "timing": {"start": 1}},
    ),
    "agent never calls": Case(
        "agent_silent",
        "its agent has not called within 2 s",
        {"timing": {"boot": 2}},
        {"proxy": {"node_urls": ["http://127.0.0.1:1"]}},
    ),
    "webui crashes": Case(
        "service_failed",
        "CUDA out of memory",
        {"service": {"max_restarts": 1}, "webui": ("--crash",)},
    ),
    "never ready": Case(
        "load_timeout",
        "not ready after 2 s",
        {"webui": ("--load", "60"), "timing": {"load": 2}},
    ),
    "no capacity": Case(
        "no_capacity", "no such machine is free", {"local": {"fail": "no_capacity"}}, starts=False
    ),
    "dies": Case(
        "instance_lost",
        "the instance died",
        {"local": {"fail": "dies_after", "dies_after": 2}},
        dies=True,
    ),
}


def fails_clearly(deploy: Deploy, case: Case) -> None:
    gpu = {**case.gpu, "timing": {"retry": RETRY, **case.gpu.get("timing", {})}}
    deployment = deploy(gpus={"main": gpu}, settings=case.settings).start()
    proxy, instance = deployment.proxies[0], deployment.instance()
    after = first = deployment.last_event()
    failures: list[tuple[float, dict[str, Any]]] = []
    deadline = time.monotonic() + 50
    while len(failures) < 3:
        # Somebody goes on waiting: the page renews its demand like this.
        assert proxy.wake().status_code == 202
        assert time.monotonic() < deadline, deployment.history()
        for event in deployment.store.follow("main", after, 1.0):
            after = event.id
            moved = (event.fields.get("from"), event.fields.get("to"))
            if moved[1] == "failed" and moved[0] != "stopping":
                failures.append((event.time, json.loads(event.fields["failure"])))
    status = proxy.status()
    assert status["failure"]["code"] == case.code, deployment.history()
    # Visitors see one line; what follows may be the service's own log.
    assert status["failure"]["message"] == failures[-1][1]["message"].splitlines()[0]
    assert case.says in failures[-1][1]["message"]

    for number, (when, failure) in enumerate(failures, start=1):
        assert (failure["code"], failure["attempts"]) == (case.code, number)
        assert failure["retry_at"] - when == pytest.approx(RETRY * 2 ** (number - 1), abs=0.1)
    retries = [
        event.time
        for event in deployment.store.events("main", 500, after=first)
        if event.kind == "transition" and event.fields["to"] == "starting"
    ]
    for (_, failure), again in zip(failures, retries[1:]):
        assert again >= failure["retry_at"] - 0.01

    # Nobody waits any more.
    deployment.wait_phase(Phase.OFF, timeout=30)
    assert len(instance.starts) >= (3 if case.starts else 0)
    if case.dies:
        assert len(instance.stops) <= 1  # the last one, once nobody wanted it
    else:
        assert len(instance.stops) == len(instance.starts), deployment.history()


@pytest.mark.slow
def test_failures_are_clear_retried_and_given_up(deploy: Deploy) -> None:
    at_once(*(lambda c=case: fails_clearly(deploy, c) for case in CASES.values()))


def test_no_capacity_is_clear_retried_and_given_up(deploy: Deploy) -> None:
    fails_clearly(deploy, CASES["no capacity"])
