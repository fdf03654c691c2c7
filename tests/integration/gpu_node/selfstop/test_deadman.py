"""The dead-man switch of a real agent, without a proxy and with running work."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from qwenctl.protocol.messages import Activity
from tests.support.agent import Start, service, spec
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy

pytestmark = pytest.mark.fast


def test_dead_man_fires_without_contact(start: Start, proxy: StandInProxy) -> None:
    proxy.spec = spec(service(), dead_man=1.0)
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    proxy.status = 500
    silent_since = time.monotonic()
    assert agent.process.wait(10) == 70
    assert time.monotonic() - silent_since > 0.6
    assert agent.mine() == []
    assert "stops itself" in agent.log


def test_dead_man_fires_when_there_never_was_contact(start: Start, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    agent = start(
        [f"http://127.0.0.1:{free_port()}"],
        DEAD_MAN="0.8",
        POWER_OFF_COMMAND=json.dumps(["touch", str(stopped)]),
    )
    assert agent.process.wait(10) == 70
    assert stopped.exists()
    assert "Connection refused" in agent.log


def test_a_proxy_in_contact_is_asked_once_more(start: Start, proxy: StandInProxy) -> None:
    """It may have forwarded a request to this node since the last heartbeat."""
    proxy.spec = spec(service(), dead_man=2.0, heartbeat=30.0)
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready")
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(5.0)
    proxy.unneeded_for = 10.0
    assert agent.process.wait(10) == 70
    assert "nobody has needed this instance for 2 s, and no proxy stops it" in agent.log


@pytest.mark.parametrize("path", ["/metrics", "/active"])
def test_dead_man_waits_for_running_work(
    path: str, start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    active = tmp_path / "active"
    active.write_text("2")
    activity = Activity(path=path, metrics=("x_running",) if path == "/metrics" else ())
    proxy.spec = spec(service("--active", str(active), activity=activity), dead_man=0.8)
    agent = start()
    assert proxy.wait_report(lambda r: r.active > 0).active == 2
    proxy.status = 503
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(2.5)
    active.write_text("0")
    assert agent.process.wait(10) == 70


def test_dead_man_counts_on_over_a_restart_of_the_agent(
    start: Start, proxy: StandInProxy, tmp_path: Path
) -> None:
    nobody = [f"http://127.0.0.1:{free_port()}"]
    record = tmp_path / "state" / "deadman.json"

    def let_pass(seconds: float) -> None:
        """As if that time had passed since the record was written."""
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, "last": content["last"] - seconds}))

    first = start(nobody, DEAD_MAN="60")
    while "no contact" not in first.log:
        assert first.process.poll() is None
        time.sleep(0.05)
    first.process.kill()
    first.process.wait()
    let_pass(60)
    # An agent that comes back late asks first: the proxy may be there after all.
    proxy.spec = spec(dead_man=60)
    second = start(DEAD_MAN="60")
    proxy.wait(lambda p: len(p.reports) >= 3)
    assert second.terminate() == 0
    # The contact was written down, so the count began anew; now nobody is there.
    let_pass(50)
    third = start(nobody, DEAD_MAN="60")
    with pytest.raises(subprocess.TimeoutExpired):
        third.process.wait(1.0)
    third.process.kill()
    third.process.wait()
    let_pass(60)
    assert start(nobody, DEAD_MAN="60").process.wait(45) == 70
