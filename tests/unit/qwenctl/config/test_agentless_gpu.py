"""``agent = false``: what the configuration allows, and what the lifecycle says then."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenctl.config.gpu import GpuConfig
from qwenctl.config.loading import load_config
from qwenctl.core.lifecycle import Move, NodeView, Timings, View, Wait, decide
from qwenctl.core.phase import Observed, Phase
from qwenctl.errors import ConfigError

NOW = 10_000.0


def test_it_needs_no_service() -> None:
    gpu = GpuConfig(agent=False)
    assert (gpu.port, gpu.service) == (7860, ())


def test_a_service_needs_nothing_to_run() -> None:
    gpu = GpuConfig.model_validate(
        {"agent": False, "service": [{"port": 8000, "readiness": {"path": "/health"}}]}
    )
    assert (gpu.port, gpu.service[0].readiness.path) == (8000, "/health")


def test_with_an_agent_it_does(tmp_path: Path) -> None:
    file = tmp_path / "qwenctl.toml"
    file.write_text("[gpu.main]\n[[gpu.main.service]]\nport = 8000\n")
    with pytest.raises(ConfigError) as error:
        load_config(str(file), env={})
    assert "gpu.main.service.0: it needs a command, or a container" in str(error.value)
    assert "agent = false" in str(error.value)


def view(phase: Phase, age: float, node: NodeView, *, ready: bool = False) -> View:
    return View(
        phase=phase,
        since=NOW - age,
        wanted=True,
        working=False,
        blocked=False,
        force_stop=False,
        observed=Observed.RUNNING,
        observed_at=NOW - 0.5,
        node=node,
        ready_at=NOW - age if ready else None,
        agentless=True,
    )


def failure(step: object) -> tuple[str, str]:
    assert isinstance(step, Move), step
    assert step.to is Phase.FAILED
    assert step.failure is not None
    assert step.failure.instance_is_bad
    return step.failure.code, step.failure.message


def test_nothing_says_that_an_agent_is_missing() -> None:
    refused = NodeView(hello=True, state="loading", error="connection refused", heartbeat_age=500.0)
    silent = NodeView(hello=True, state="ready", heartbeat_age=500.0)
    assert failure(decide(view(Phase.BOOTING, 301, NodeView()), Timings(), NOW)) == (
        "load_timeout",
        "the instance is running, but the cloud names no address of it",
    )
    assert failure(decide(view(Phase.LOADING, 1201, refused), Timings(), NOW)) == (
        "load_timeout",
        "the service is not ready after 1200 s (connection refused)",
    )
    assert failure(decide(view(Phase.LOADING, 500, refused, ready=True), Timings(), NOW)) == (
        "service_lost",
        "the service has not answered for 180 s (connection refused)",
    )
    assert failure(decide(view(Phase.READY, 500, silent, ready=True), Timings(), NOW)) == (
        "service_lost",
        "the service has not answered for 180 s",
    )


def test_without_an_address_it_waits_for_one() -> None:
    assert isinstance(decide(view(Phase.BOOTING, 100, NodeView()), Timings(), NOW), Wait)
