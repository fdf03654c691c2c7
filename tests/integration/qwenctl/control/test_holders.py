"""A second holder beside the schedules: `qwenctl.control.holders` under virtual time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from qwenctl.config.deployment import Config
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
from qwenctl.core.lifecycle import Phase
from qwenctl.core.schedule import Window
from qwenctl.core.snapshot import Snapshot
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
        life.controller = Controller(
            GPU, life.gpu, life.store, life.cloud, keeper=keeper, monotonic=life.clock
        )

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
        self.lead_by(life, config({**MORNING, "lead": "7s"}))
        life.clock.now = NINE - 9
        if not leads:
            assert store.acquire(GPU, "another", 60.0)[0]
        assert life.controller.step() == pytest.approx(2.0, abs=0.01)

    def test_a_pass_of_holders_that_fails_stops_no_start(
        self, life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object, **__: object) -> float:
            raise OSError("the calendars' disk is gone")

        monkeypatch.setattr(Keeper, "step", fail)
        life.demand()
        with caplog.at_level(logging.ERROR, "qwenctl.control.controller"):
            life.run(15)
        assert life.phase() is Phase.READY
        assert caplog.text.count("leases cannot be held by rule") == 2  # not at each pass
