"""Giving up several GPUs, each in a thread of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qwenctl.cli.common.context import Target
from qwenctl.cli.use import down
from tests.unit.qwenctl.core.test_status import snap


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SimpleNamespace(snapshot=lambda _: snap("ready"), release=lambda *_, **__: 0)
    every = [
        SimpleNamespace(name=name, store=store, command=lambda verb: f"`qwenctl {verb}`")
        for name in ("one", "two")
    ]
    monkeypatch.setattr(down, "heed_interrupt", lambda: None)
    monkeypatch.setattr(Target, "all", lambda _: every)


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize("json", [False, True])
def test_a_mistake_of_ours_is_no_success(monkeypatch: pytest.MonkeyPatch, json: bool) -> None:
    def wait(target: Any, *_: object, **__: object) -> str:
        if target.name == "two":
            raise RuntimeError("broken")
        return "off"

    monkeypatch.setattr(down, "_wait_off", wait)
    with pytest.raises(RuntimeError, match="broken"):
        down.down_all(False, "", False, None, False, json, None)


@pytest.mark.usefixtures("targets")
def test_an_interrupt_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(down, "_wait_off", lambda *_, **__: "off")

    def interrupted() -> None:
        raise KeyboardInterrupt

    silent = SimpleNamespace(start=lambda: None, join=interrupted)
    monkeypatch.setattr("threading.Thread", lambda **_: silent)
    with pytest.raises(KeyboardInterrupt):
        down.down_all(False, "", False, None, False, False, None)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line] == [
        "one goes on stopping once `qwenctl down` or `qwenctl serve` runs again.",
        "two goes on stopping once `qwenctl down` or `qwenctl serve` runs again.",
    ]
