"""Where no agent can report, the controller's own probe says whether the service is ready."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.lifecycle import NodeView, Phase


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


def test_a_service_that_has_gone_again_is_not_ready() -> None:
    server = HTTPServer(("127.0.0.1", 0), Ready)
    port = server.server_address[1]
    gpu = GpuConfig(agent=False, service=({"name": "webui", "port": port},))  # type: ignore[arg-type]
    unused: Any = SimpleNamespace(call_timeout=1.0, observe_interval=1.0)
    controller = Controller("main", gpu, unused, unused, owner="test", standalone=True)

    def says_ready(phase: Phase) -> bool:
        seen: Any = SimpleNamespace(
            node_view=NodeView(), phase=phase, address="127.0.0.1", start_seq=1
        )
        return controller._probe_says_ready(seen)

    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert says_ready(Phase.BOOTING)
    server.shutdown()
    server.server_close()
    assert not says_ready(Phase.LOADING)
