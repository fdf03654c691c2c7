"""Connections whose peer has vanished: the kernel probes both sides of the proxy."""

from __future__ import annotations

import subprocess

from proxy.http.connections import IDLE
from tests.integration.proxy.running import RawClient, RunningProxy
from tests.support.waiting import until


def timers(filter_: str) -> list[str]:
    """The timers of established connections, as the kernel shows them."""
    command = ["ss", "-Htno", "state", "established", filter_]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return [line.partition("timer:")[2] for line in done.stdout.splitlines()]


def test_silent_connections_are_probed_on_both_sides(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for end in (f"sport = :{ready.port}", f"dport = :{ready.node_port()}"):
            found = until(lambda end=end: [t for t in timers(end) if "keepalive" in t], 2)
            assert found, end
        shown = found[0].removeprefix("(keepalive,")  # such as 59sec, or 1min
        seconds = 60.0 if shown.startswith("1min,") else float(shown.partition("sec")[0])
        assert seconds <= IDLE
