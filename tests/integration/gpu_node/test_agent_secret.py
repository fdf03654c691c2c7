"""A node secret that is replaced while a service is at work: nothing is cut, and it recovers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.agent import Start, service, spec
from tests.support.stand_in_proxy import SECRET, StandInProxy
from tests.support.waiting import until

NEW = "the new secret of this test's deployment"


def rotate(proxy: StandInProxy) -> None:
    proxy.secret = proxy.signs_with = NEW


@pytest.mark.parametrize("first", ["node", "proxy"])
def test_a_secret_replaced_under_work_cuts_nothing(
    start: Start, proxy: StandInProxy, tmp_path: Path, first: str
) -> None:
    """Far longer than the dead man's switch, which does not fire under work."""
    (tmp_path / "active").write_text("1")
    activity = {"path": "/active"}
    proxy.spec = spec(
        service("--active", str(tmp_path / "active"), activity=activity), dead_man=1.0
    )
    agent = start()
    proxy.wait_report(lambda r: r.state == "ready" and r.active == 1)
    process = proxy.reports[-1].services[0].detail
    if first == "node":
        (tmp_path / "secret").write_text(NEW + "\n")
        count = len(proxy.reports)
        proxy.wait(lambda p: len(p.reports) > count + 3)  # the old one still serves
        rotate(proxy)
    else:
        rotate(proxy)
        until(lambda: "is the node secret the same on both sides?" in agent.log, 15.0)
        assert "A new one in the node's file counts at once" in agent.log
        time.sleep(3.0)
        assert agent.process.poll() is None
        (tmp_path / "secret").write_text("")  # half written
        time.sleep(1.0)
        (tmp_path / "secret").write_text(NEW + "\n")
    proxy.forget()
    told = proxy.wait_report(lambda r: r.state == "ready" and r.active == 1, timeout=30)
    assert told.services[0].detail == process
    assert told.services[0].restarts == 0
    until(lambda: "the node secret was replaced" in agent.log)
    assert SECRET not in agent.log
    assert NEW not in agent.log
