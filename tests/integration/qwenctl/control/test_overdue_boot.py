"""A boot whose agent is not heard of says so, with where the agent is told to call."""

from __future__ import annotations

import pytest

from qwenctl.config.deployment import Config
from qwenctl.control.former import ConfiguredController
from qwenctl.core.events import EventKind
from qwenctl.core.explain import explain
from qwenctl.core.phase import Phase
from qwenctl.core.status import full_status, page_status
from qwenctl.store.store import Store
from tests.simulation.life import Life
from tests.simulation.puppets import GPU
from tests.support.virtual_time import VirtualClock

URL = "https://typo.example"


@pytest.fixture
def life(store: Store, clock: VirtualClock) -> Life:
    """A GPU whose nodes are told the public URL, as there are no node URLs."""
    life = Life(store, clock)
    serve(life)
    return life


def serve(life: Life) -> None:
    config = Config.model_validate({"proxy": {"public_url": URL}, "gpu": {GPU: {}}})
    life.controller = ConfiguredController(
        GPU, life.gpu, life.store, life.cloud, config=config, monotonic=life.clock
    )


def wait(life: Life, seconds: float) -> None:
    for _ in range(round(seconds)):
        life.run(1.0, speaks=False)


def why(life: Life) -> str:
    return "\n".join(map(str, explain(life.now, life.store.events(GPU, 1000))))


def boot(life: Life) -> None:
    life.store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")
    while life.phase() is not Phase.BOOTING:
        wait(life, 1)


def test_an_overdue_boot_is_told_everywhere(life: Life) -> None:
    boot(life)
    wait(life, 40)
    assert "overdue" not in page_status(life.now, [], life.gpu, may_wake=True)
    assert "nothing heard" not in why(life)
    wait(life, 60)
    assert life.phase() is Phase.BOOTING
    told = why(life)
    assert "nothing heard from its agent for 1 min" in told
    assert f"it is told to reach {URL}" in told
    assert "it becomes ready, then stays on" not in told
    for page in (
        page_status(life.now, [], life.gpu, may_wake=True),
        full_status(life.now, [], life.gpu),
    ):
        assert page["overdue"]["urls"] == [URL]
        assert page["overdue"]["seconds"] > 60
    kinds = [event for event in life.store.events(GPU, 100) if event.kind is EventKind.OVERDUE]
    assert len(kinds) == 1
    assert URL in kinds[0].error


def test_it_fails_with_the_same_words(life: Life) -> None:
    boot(life)
    wait(life, life.gpu.timing.boot + 10)
    failure = life.now.failure
    assert failure is not None
    assert f"it is told to reach {URL}" in failure.message


def test_a_failure_that_later_moves_carry_has_the_url_once(life: Life) -> None:
    boot(life)
    for _ in range(40):
        wait(life, life.gpu.timing.boot / 10)
        if failure := life.now.failure:
            assert failure.message.count(URL) == 1, failure
    assert life.store.snapshot(GPU).failure


def test_an_agent_that_calls_is_overdue_no_more(life: Life) -> None:
    boot(life)
    wait(life, 100)
    life.run(20.0)
    assert life.phase() is Phase.READY
    assert "nothing heard" not in why(life)
    assert "overdue" not in full_status(life.now, [], life.gpu)


def test_the_agent_of_a_proxy_that_was_away_has_its_time(life: Life) -> None:
    boot(life)
    life.clock.advance(100.0)  # nobody led, so it could reach nobody
    serve(life)
    wait(life, 20)
    assert "nothing heard" not in why(life)
