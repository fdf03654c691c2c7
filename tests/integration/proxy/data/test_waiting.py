"""Leases of waiting pages: how long they last, and who may renew them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from proxy.data.waiting import RENEW_PAGE, TRY_PAUSE, WaitingPages
from proxy.http.cookies import VISIT_COOKIE
from proxy.http.problem import Problem
from proxy.http.request import Request
from qwenctl.clouds.base import NoCapacity
from qwenctl.config.deployment import Config
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.store import Store
from tests.simulation.life import IDLE, Life
from tests.simulation.puppets import GPU
from tests.unit.proxy.made import ANYBODY, BROWSER, KEY, SAME_SITE, request

SECOND = "second"


def pages(store: Store, *, tiers: bool = False, **settings: Any) -> WaitingPages:
    gpu = {"preset": "generic", "idle_timeout": IDLE, **settings}
    gpus = {GPU: {**gpu, "tier": "a"}, SECOND: {**gpu, "tier": "b"}} if tiers else {GPU: gpu}
    return WaitingPages(Config.model_validate({"gpu": gpus}), store)


def page(**headers: str) -> Request:
    return request("GET", "/", {**SAME_SITE, **headers})


@pytest.fixture
def lasts(life: Life) -> Callable[[], float]:
    """How long the only lease lasts from now on, in seconds; 0 without one."""

    def left() -> float:
        snapshot = life.now
        return max((lease.expiry - snapshot.now for lease in snapshot.leases), default=0.0)

    return left


@pytest.mark.parametrize("identity", [ANYBODY, BROWSER], ids=["anonymous", "signed in"])
def test_a_page_that_is_seen_again_keeps_its_lease_through_a_slow_boot(
    life: Life, identity: Identity, lasts: Callable[[], float]
) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), identity)
    life.step()
    assert life.phase() is Phase.STARTING
    whole = lasts()
    for _ in range(40):  # a hidden tab polls, a page without script comes again
        life.clock.advance(60.0)
        waiting.seen(GPU, page(), identity)
        assert lasts() == pytest.approx(whole)
    life.clock.advance(whole + 1.0)
    waiting.seen(GPU, page(), identity)
    assert lasts() == 0.0, "looking at the page must not wake"


def test_it_is_renewed_no_more_often_than_needed(
    life: Life, lasts: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), ANYBODY)
    life.step()
    demands: list[float] = []
    demand = life.store.demand

    def counting(*args: Any, **options: Any) -> Any:
        demands.append(life.clock())
        return demand(*args, **options)

    monkeypatch.setattr(life.store, "demand", counting)
    for _ in range(300):
        life.clock.advance(1.0)
        waiting.seen(GPU, page(), ANYBODY)
    assert len(demands) <= 300 / RENEW_PAGE + 1
    assert lasts() > IDLE


def test_with_a_choice_of_gpus_the_visitors_own_lease_is_renewed(
    life: Life, lasts: Callable[[], float]
) -> None:
    waiting = pages(life.store, tiers=True)
    visitor = page(Cookie=f"{VISIT_COOKIE}=7")
    waiting.wake(GPU, visitor, ANYBODY)
    life.step()
    assert life.leases == [f"{ANYBODY.lease}#7"]
    whole = lasts()
    life.clock.advance(100.0)
    waiting.seen(GPU, page(Cookie=f"{VISIT_COOKIE}=8"), ANYBODY)
    assert lasts() == pytest.approx(whole - 100.0), "another visitor's page"
    waiting.seen(GPU, visitor, ANYBODY)
    assert life.leases == [f"{ANYBODY.lease}#7"]
    assert lasts() == pytest.approx(whole)


def test_what_is_seen_without_a_lease_gets_none(life: Life) -> None:
    waiting = pages(life.store)
    life.demand("somebody else")
    life.step()
    assert life.phase() is Phase.STARTING
    for identity in (ANYBODY, BROWSER, KEY):
        waiting.seen(GPU, page(), identity)
    assert life.leases == ["request:somebody else"]


def test_after_down_an_open_page_asks_for_nothing(life: Life) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), ANYBODY)
    life.store.release(GPU, actor="eve", reason="down")
    life.clock.advance(60.0)
    waiting.seen(GPU, page(), ANYBODY)
    assert life.leases == []


def test_another_site_and_those_who_may_not_wake_renew_nothing(
    life: Life, lasts: Callable[[], float]
) -> None:
    pages(life.store).wake(GPU, page(), ANYBODY)
    life.step()
    before = lasts()
    life.clock.advance(60.0)
    pages(life.store).seen(GPU, page(**{"Sec-Fetch-Site": "cross-site"}), ANYBODY)
    pages(life.store, wake_on="never").seen(GPU, page(), ANYBODY)
    assert lasts() == pytest.approx(before - 60.0)


def test_a_ready_gpu_is_not_kept_on_by_a_page(life: Life, lasts: Callable[[], float]) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), ANYBODY)
    life.run(10)
    assert life.phase() is Phase.READY
    life.clock.advance(60.0)
    before = lasts()
    waiting.seen(GPU, page(), ANYBODY)
    assert lasts() == before


def test_another_site_wakes_nothing(life: Life) -> None:
    with pytest.raises(Problem, match="another site"):
        pages(life.store).wake(GPU, page(**{"Sec-Fetch-Site": "cross-site"}), ANYBODY)
    assert life.leases == []


@pytest.mark.parametrize("watched", [True, False])
def test_a_forgotten_tab_does_not_start_all_night_what_cannot_run(
    life: Life, watched: bool
) -> None:
    waiting = pages(life.store)
    life.node.mood = "broken"
    waiting.wake(GPU, page(), BROWSER)
    for second in range(3 * 3600):
        if second % 5 == 0:
            waiting.seen(GPU, page(), BROWSER, watched=watched)
        life.step()
        life.node.speak()
        life.clock.advance(1.0)
    # In front of somebody it goes on trying.
    assert (len(life.cloud.starts) > 20) is watched
    assert bool(life.leases) is watched


@pytest.mark.parametrize(
    ("identity", "cookie"), [(BROWSER, ""), (ANYBODY, "7")], ids=["signed in", "anonymous"]
)
def test_who_gives_up_lets_the_gpu_sleep(life: Life, identity: Identity, cookie: str) -> None:
    waiting = pages(life.store)
    visitor = page(Cookie=f"{VISIT_COOKIE}={cookie}")
    waiting.wake(GPU, visitor, identity)
    life.step()
    assert life.phase() is Phase.STARTING
    waiting.give_up(GPU, visitor, identity)
    assert life.leases == []
    waiting.seen(GPU, visitor, identity, watched=True)  # the page is still open
    assert life.leases == []


def test_who_gives_up_ends_no_wait_of_others(life: Life) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(Cookie=f"{VISIT_COOKIE}=7"), ANYBODY)
    waiting.give_up(GPU, page(Cookie=f"{VISIT_COOKIE}=8"), ANYBODY)
    for visitor, identity in ((page(), ANYBODY), (page(), KEY)):
        with pytest.raises(Problem, match="that of others"):
            waiting.give_up(GPU, visitor, identity)
    with pytest.raises(Problem, match="another site"):
        waiting.give_up(GPU, page(**{"Sec-Fetch-Site": "cross-site"}), BROWSER)
    assert life.leases == [f"{ANYBODY.lease}#7"]


def test_a_ready_gpu_is_not_given_up(life: Life) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), BROWSER)
    life.run(10)
    assert life.phase() is Phase.READY
    waiting.give_up(GPU, page(), BROWSER)
    assert life.leases == [BROWSER.lease]


def test_try_now_does_not_wait_for_the_next_attempt(life: Life) -> None:
    waiting = pages(life.store)
    tried: list[float] = []

    def refuse() -> NoCapacity:
        tried.append(life.clock())
        return NoCapacity("none left")

    life.cloud.refuse_start = refuse
    waiting.wake(GPU, page(), BROWSER)
    while len(tried) < 4:
        life.run(1)
    life.run(TRY_PAUSE)
    assert len(tried) == 4
    waiting.wake(GPU, page(), BROWSER)  # as a page does by itself
    life.run(2)
    assert len(tried) == 4
    waiting.wake(GPU, page(), BROWSER, try_now=True)
    life.run(2)
    assert len(tried) == 5
    for _ in range(8):  # however often somebody presses the button
        waiting.wake(GPU, page(), BROWSER, try_now=True)
        life.run(1)
    assert len(tried) == 5
    life.run(TRY_PAUSE)
    assert len(tried) == 6


def test_a_block_is_named_without_an_account(life: Life) -> None:
    life.store.block(GPU, "maintenance:root-at-vm7", None, reason="", actor="root-at-vm7")
    with pytest.raises(Problem) as refusal:
        pages(life.store).wake(GPU, page(), BROWSER)
    assert "blocked by maintenance;" in refusal.value.detail


def test_a_down_between_look_and_renewal_is_not_undone(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = pages(life.store)
    waiting.wake(GPU, page(), BROWSER)
    life.step()
    life.clock.advance(60.0)
    look = life.store.snapshot

    def snapshot(gpu: str) -> Snapshot:
        found = look(gpu)
        life.store.release(gpu, actor="eve", reason="down")
        time.sleep(0.05)  # the time that a request has taken is measured by the real clock
        life.clock.advance(0.01)
        return found

    monkeypatch.setattr(life.store, "snapshot", snapshot)
    waiting.seen(GPU, page(), BROWSER)
    monkeypatch.undo()
    assert life.leases == []
