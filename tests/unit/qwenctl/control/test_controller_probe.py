"""Where no agent can report, the controller's own probe says whether the service is ready."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pytest_httpserver import URI_DEFAULT, HTTPServer

from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.lifecycle import NodeView
from qwenctl.core.phase import Phase


def test_a_service_that_has_gone_again_is_not_ready() -> None:
    server = HTTPServer()
    server.expect_request(URI_DEFAULT).respond_with_data()
    server.start()
    service: Any = {"name": "webui", "port": server.port}
    gpu = GpuConfig(agent=False, service=(service,))
    unused: Any = SimpleNamespace(call_timeout=1.0, observe_interval=1.0, connected=1)
    controller = Controller("main", gpu, unused, unused, owner="test", standalone=True)

    def says_ready(phase: Phase) -> bool:
        seen: Any = SimpleNamespace(
            node_view=NodeView(), phase=phase, address="127.0.0.1", start_seq=1
        )
        return controller._probe_says_ready(seen)

    assert says_ready(Phase.BOOTING)
    server.stop()
    assert not says_ready(Phase.LOADING)
