"""A node that freezes closes no connection, and answers nothing: its work does not hide that."""

from __future__ import annotations

import signal

import psutil
import pytest

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.chaos.test_use_keeps_on import generation
from tests.support.deployment import Deployment, processes_of


def node_processes(deployment: Deployment) -> list[psutil.Process]:
    """The agent and its service."""
    proxies = {proxy.pid for proxy in deployment.proxies}
    found = [
        process for process in processes_of(deployment.directory) if process.pid not in proxies
    ]
    return [p for p in found if "valkey" not in " ".join(p.cmdline()).lower()]


@pytest.mark.slow
def test_a_node_that_freezes_under_a_stream_is_stopped_and_started_anew(deploy: Deploy) -> None:
    timing = {"node_lost": 3, "retry": 0.5}
    deployment = deploy(gpus={"main": {"idle_timeout": 60, "timing": timing}}).start()
    with generation(deployment, 300.0) as rest:
        frozen = node_processes(deployment)
        after = deployment.last_event()
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            failed = deployment.wait_transition(Phase.FAILED, after=after, timeout=60)
            assert failed.fields["cause"] == "agent_lost", deployment.history()
            assert rest() == ""  # the client is told that it is not whole
            deployment.wait_transition(Phase.STOPPING, after=after, timeout=60)
        finally:  # a local instance, unlike a cloud's, ends only by itself
            for process in frozen:
                if process.is_running():
                    process.send_signal(signal.SIGCONT)
    ready = deployment.wait_transition(Phase.READY, after=after, timeout=60)
    assert ready.time > failed.time
    instance = deployment.instance()
    assert (len(instance.starts), len(instance.stops)) == (2, 1)


@pytest.mark.slow
def test_an_agent_that_dies_under_a_stream_does_not_cut_it(deploy: Deploy) -> None:
    timing = {"node_lost": 2, "retry": 0.5}
    deployment = deploy(gpus={"main": {"idle_timeout": 2, "timing": timing}}).start()
    with generation(deployment, 8.0) as rest:
        agent = [p for p in node_processes(deployment) if "gpu_node" in " ".join(p.cmdline())]
        assert agent
        for process in agent:
            process.send_signal(signal.SIGSTOP)
        try:
            assert rest().endswith("end\n"), deployment.history()
        finally:
            for process in agent:
                process.send_signal(signal.SIGCONT)
    deployment.instance().assert_nothing_cut()
