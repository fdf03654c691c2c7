from __future__ import annotations

from gpu_node.agent import node_state
from qwenctl.protocol.messages import ServiceState


def service(state: str, error: str = "") -> ServiceState:
    return ServiceState(name="a", port=1, state=state, error=error)  # type: ignore[arg-type]


def test_the_worst_service_is_the_nodes_state() -> None:
    ready, starting = service("ready"), service("starting")
    failed, crashed = service("failed", "it broke"), service("crashed", "once")
    assert node_state((ready, ready), stopping=False) == ("ready", "")
    assert node_state((ready, starting), stopping=False) == ("loading", "")
    assert node_state((ready, crashed), stopping=False) == ("loading", "once")
    assert node_state((starting, failed), stopping=False) == ("failed", "it broke")
    assert node_state((ready, failed), stopping=True) == ("stopping", "")
    assert node_state((), stopping=False) == ("ready", "")
