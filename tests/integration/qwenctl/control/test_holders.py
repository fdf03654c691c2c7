"""A second holder beside the schedules: `qwenctl.control.holders` under virtual time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from qwenctl.config.deployment import Config
from qwenctl.control import holders
from qwenctl.control.controller import Controller
from qwenctl.control.holders import (
    HOLDERS,
    History,
    Hold,
    Holder,
    Keeper,
    Settings,
)
from qwenctl.core.events import EventKind
from qwenctl.core.explain import explain
from qwenctl.core.phase import Phase
from qwenctl.core.schedule import Window
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store
from tests.integration.qwenctl.control.mornings import (
    DAY,
    GPU,
    HOUR,
    MORNING,
    NINE,
    config,
    written,
)
from tests.simulation.life import Life
from tests.support.virtual_time import VirtualClock


class Budget:
    """A second holder: blocks the rest of the day once the GPU was on for ``limit`` seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.broken = False

    def holds(
        self, snapshot: Snapshot, history: History, settings: Settings, now: float
    ) -> Iterator[Hold]:
        if self.broken:
            raise RuntimeError("no prices")
        day = now - (now - NINE) % DAY
        turns = [e for e in history() if e.kind == EventKind.TRANSITION and e.time >= day]
        spent, on = 0.0, None
        for event in turns:
            if on is not None:
                spent, on = spent + event.time - on, None
            if event.fields["to"] in ("ready", "draining"):
                on = event.time
        spent += now - on if on is not None else 0.0
        if spent > self.limit:
            window = Window(opens=day + self.limit, ends=day + DAY, starts=day)
            yield Hold("budget", window, f"{self.limit:.0f} s a day are spent", "budget")

    @property
    def holder(self) -> Holder:
        return Holder("budget", self.holds, frozenset({"budget"}))


class Led(Controller):
    """A controller whose holders make a pass before each of its own."""

    def __init__(self, keeper: Keeper, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keeper, self._due_at = keeper, 0.0

    def step(self) -> float:
        if self._monotonic() >= self._due_at:
            self._due_at = self._monotonic() + self._keeper.step(release=self.leads())
        return super().step()


class TestASecondHolder:
    """A budget runs through the controller beside the schedules, under virtual time."""

    @pytest.fixture
    def budget(self) -> Budget:
        return Budget(100.0)

    @pytest.fixture
    def life(self, store: Store, clock: VirtualClock, budget: Budget) -> Life:
        clock.now = NINE - 60
        life = Life(store, clock)
        self.lead_by(life, config({**MORNING, "lead": 0}), budget)
        return life

    def lead_by(self, life: Life, settings: Config, *budgets: Budget) -> None:
        """Let another controller take over, with these holders."""
        life.controller._give_up_lock()
        holders = [*HOLDERS, *(budget.holder for budget in budgets)]
        keeper = Keeper(settings, GPU, life.store, holders)
        life.controller = Led(keeper, GPU, life.gpu, life.store, life.cloud, monotonic=life.clock)

    def test_its_block_drains_waits_for_work_and_is_lifted(
        self, life: Life, store: Store, budget: Budget
    ) -> None:
        life.run(120)
        assert life.phase() is Phase.READY  # by the schedule
        assert life.leases == ["prewarm:morning"]
        life.node.active = 1
        life.run(90)
        snapshot = life.now
        assert [block.name for block in snapshot.blocks] == ["budget"]
        assert "cut" not in snapshot.state
        assert snapshot.phase is Phase.DRAINING  # until the node's work has ended
        assert any("budget" in str(reason) for reason in explain(snapshot, store.events(GPU)))
        life.run(120)
        assert life.phase() is Phase.DRAINING
        life.node.active = 0
        life.run(60)
        assert (life.phase(), len(life.cloud.stops)) == (Phase.OFF, 1)
        life.run(HOUR / 4)
        assert len(life.cloud.starts) == 1  # the schedule's lease is there, and counts for nothing
        assert written(store) == ["prewarm:morning", "budget"]

        budget.limit = 1000.0  # somebody grants more
        life.run(60)
        assert (life.now.blocks, life.phase()) == ((), Phase.READY)
        lifted = [e for e in store.events(GPU) if e.kind == EventKind.UNBLOCK]
        assert [(e.fields["name"], e.fields["actor"]) for e in lifted] == [("budget", "budget")]

    def test_the_next_leader_lifts_what_the_last_one_has_left(
        self, life: Life, store: Store, budget: Budget
    ) -> None:
        life.run(240)
        assert [block.name for block in life.now.blocks] == ["budget"]
        self.lead_by(life, config(), Budget(1e6))
        life.run(40)
        assert life.now.blocks == ()
        # Its schedule is gone from the configuration; what was held of it ends by itself.
        assert life.leases == ["prewarm:morning"]

    def test_who_does_not_lead_releases_nothing(self, life: Life, store: Store) -> None:
        life.run(240)
        generous = Keeper(config(), GPU, store, [Budget(1e6).holder])
        generous.step(release=False)
        assert [block.name for block in life.now.blocks] == ["budget"]

    def test_a_holder_that_fails_lifts_nothing_and_stops_no_other(
        self, life: Life, store: Store, budget: Budget, caplog: pytest.LogCaptureFixture
    ) -> None:
        life.run(240)
        budget.broken = True
        budget.limit = 1e6
        store.release(GPU, actor="ada", only="prewarm:morning")
        life.clock.now = NINE + DAY - 60
        store.block(GPU, "budget", HOUR, reason="", actor="budget")
        with caplog.at_level(logging.ERROR, "qwenctl.control.holders"):
            life.run(120)
        assert [block.name for block in life.now.blocks] == ["budget"]
        assert life.leases == ["prewarm:morning"]  # the next morning's
        assert caplog.text.count("its budget cannot be followed") == 1

    def test_a_person_who_unblocks_has_the_last_word(
        self, life: Life, store: Store, budget: Budget
    ) -> None:
        life.run(240)
        assert store.unblock(GPU, actor="ada") == ["budget"]
        life.run(120)
        assert life.now.blocks == ()

    @pytest.mark.parametrize("leads", [True, False])
    def test_a_pass_ends_before_something_is_to_be_held(
        self, life: Life, store: Store, leads: bool
    ) -> None:
        life.clock.now = NINE - 9
        keeper = Keeper(config({**MORNING, "lead": "7s"}), GPU, store)
        assert keeper.step(release=leads) == pytest.approx(2.0, abs=0.01)

    def test_passes_that_fail_are_made_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        errors: list[Exception] = [OSError("the calendars' disk is gone"), StoreUnavailable("away")]
        stop, leads = threading.Event(), [True, False, True]
        seen: list[bool] = []

        def step(_: Keeper, *, release: bool) -> float:
            seen.append(release)
            if errors:
                raise errors.pop(0)
            stop.set()
            return 0.0

        monkeypatch.setattr(Keeper, "step", step)
        monkeypatch.setattr(holders, "RETRY_SECONDS", 0.01)
        monkeypatch.setattr(holders, "STORE_SECONDS", 0.01)
        with caplog.at_level(logging.ERROR, "qwenctl.control.holders"):
            Keeper(config(MORNING), GPU, store).run(stop, lambda: leads.pop(0))
        assert seen == [True, False, True]
        assert caplog.text.count("leases cannot be held by rule") == 1
