"""What a proxy that ends leaves on."""

from __future__ import annotations

from qwenctl.config.deployment import Config
from qwenctl.control.left_on import left_running
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


def config(**gpu: object) -> Config:
    return Config.model_validate({"gpu": {GPU: gpu}})


def test_what_nobody_looks_after_is_named(life: Life) -> None:
    assert list(left_running(config(), life.store)) == []  # it is off
    life.demand()
    life.run(60.0)
    assert list(left_running(config(), life.store)) == []  # another proxy leads
    life.controller._give_up_lock()
    [text] = left_running(config(), life.store)
    assert text.startswith(
        f"{GPU} is ready and stays on, and costs; nobody stops it until its agent"
    )
    assert "after 10 min without a proxy" in text
    assert "`qwenctl down` stops it now" in text
    [text] = left_running(config(agent=False), life.store)
    assert "nobody stops it; `qwenctl down`" in text
