"""Schedules in the store: `qwenctl.control.holders` on a real Valkey, under virtual time."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import TZPATH

import pytest

from qwenctl.config import holidays
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.read_schedules import machine_zone, schedules
from qwenctl.control.controller import Controller
from qwenctl.control.holders import (
    LOOK_SECONDS,
    Keeper,
)
from qwenctl.core.explain import explain
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Phase
from qwenctl.core.snapshot import Outcome
from qwenctl.core.status import page_status
from qwenctl.errors import ConfigError
from qwenctl.store.store import Store
from tests.integration.qwenctl.control.mornings import (
    BERLIN,
    DAY,
    GPU,
    HOUR,
    MORNING,
    NINE,
    config,
    written,
)
from tests.simulation.world import Cloud
from tests.support.virtual_time import VirtualClock

NIGHT = {"name": "night", "cron": "0 20 * * *", "timezone": "Europe/Berlin", "duration": "11h"}


class Keepers:
    """The holders of all GPUs of a configuration, without controllers."""

    def __init__(self, config: Config, store: Store) -> None:
        self.of = {gpu: Keeper(config, gpu, store) for gpu in config.gpu}

    def step(self) -> float:
        return min(keeper.step(release=True) for keeper in self.of.values())


@pytest.fixture
def clock() -> VirtualClock:
    """Monday, at midnight in Berlin."""
    return VirtualClock(NINE - 9 * HOUR)


@pytest.fixture
def morning(store: Store) -> Keepers:
    return Keepers(config(MORNING), store)


def leases(store: Store) -> dict[str, float]:
    """Name → seconds left."""
    snapshot = store.snapshot(GPU)
    entries = (*snapshot.leases, *snapshot.blocks)
    return {lease.name: round(lease.expiry - snapshot.now, 3) for lease in entries}


def boot(store: Store, clock: VirtualClock, *seconds: float) -> None:
    """A cold wake that takes so long from start call to running, to hello, to ready; then off."""
    lock, _, _ = store.acquire(GPU, "c", 3600.0)
    assert lock
    phase = Phase.OFF
    store.pin(GPU, "pin:test", 5, reason="", actor="test")
    steps = (Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING,
             Phase.STOPPING, Phase.OFF)  # fmt: skip
    for to, wait in zip(steps, (*seconds, 0, 0, 0, 0)):
        move = Move(to, "test", Guard.NONE)
        done = store.transition(GPU, lock, phase, move, drain=0, idle_timeout=1)
        assert done is Outcome.OK
        phase = to
        if to is Phase.STARTING:
            store.record_call(GPU, lock, phase, "start")
        clock.advance(wait)
    store.release_lock(GPU, lock)
    clock.advance(10)


class TestPrewarm:
    def test_ready_at_nine_means_started_before(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        """The lead is the median of past boots; before there are any, the estimate."""
        clock.now = NINE - 91
        delay = morning.step()
        assert leases(store) == {}
        clock.advance(delay)
        morning.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR + 90}
        assert store.snapshot(GPU).now == NINE - 90

    def test_the_lead_is_learned(self, store: Store, clock: VirtualClock, morning: Keepers) -> None:
        clock.now = NINE - 2 * HOUR
        assert morning.step() == LOOK_SECONDS
        boot(store, clock, 100, 60, 140)
        clock.now = NINE - 301
        delay = morning.step()
        assert leases(store) == {}
        clock.advance(delay)
        morning.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR + 300}

    def test_a_lead_of_ones_own(self, store: Store, clock: VirtualClock) -> None:
        plan = Keepers(config({**MORNING, "lead": "10m"}), store)
        clock.now = NINE - 600
        plan.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR + 600}

    def test_it_is_never_late_while_it_runs(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        """Followed from midnight on: each delay ends before or at the opening."""
        while not leases(store):
            assert clock.now <= NINE - 90
            clock.advance(morning.step())
        assert store.snapshot(GPU).leases[0].since == pytest.approx(NINE - 90, abs=0.02)

    def test_down_at_the_moment_takes_what_is_left(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE + 2 * HOUR
        morning.step()
        assert leases(store) == {"prewarm:morning": HOUR}
        clock.now = NINE + 3 * HOUR
        morning.step()
        assert leases(store) == {}
        assert written(store) == ["prewarm:morning"]

    def test_one_event_for_each_window(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        other = Keepers(config(MORNING), store)
        for day in range(3):
            for minute in (-1, 0, 1, 90, 179, 180, 181):
                clock.now = NINE + day * DAY + minute * 60
                morning.step()
                other.step()
        assert written(store) == ["prewarm:morning"] * 3

    def test_two_at_once(self, store: Store, clock: VirtualClock) -> None:
        clock.now = NINE
        plans = [Keepers(config(MORNING), store) for _ in range(8)]
        barrier = threading.Barrier(len(plans))

        def go(plan: Keepers) -> None:
            barrier.wait(timeout=30)
            plan.step()

        threads = [threading.Thread(target=go, args=(plan,)) for plan in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert leases(store) == {"prewarm:morning": 3 * HOUR}
        assert written(store) == ["prewarm:morning"]

    def test_down_inside_the_window_lasts_until_the_next(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE + 60
        morning.step()
        store.release(GPU, actor="ada")
        for _ in range(5):
            clock.advance(60)
            morning.step()
            # A proxy that is started anew, and one more replica.
            Keepers(config(MORNING), store).step()
            assert leases(store) == {}
        assert store.snapshot(GPU).given_up("prewarm:morning", NINE)
        clock.now = NINE + DAY
        assert not store.snapshot(GPU).given_up("prewarm:morning", NINE + DAY)
        morning.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR}
        store.release(GPU, actor="ada")
        morning.step()
        assert leases(store) == {}
        assert written(store) == ["prewarm:morning"] * 2

    def test_down_before_the_window_forbids_nothing(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE - HOUR
        store.release(GPU, actor="ada")
        clock.now = NINE
        morning.step()
        assert "prewarm:morning" in leases(store)

    def test_down_within_the_lead_is_kept_at_the_opening(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE - 60
        morning.step()
        store.release(GPU, actor="ada")
        clock.now = NINE + 60
        morning.step()
        assert leases(store) == {}

    def test_a_lead_that_changes_makes_no_new_window(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE - 60
        morning.step()
        store.release(GPU, actor="ada")
        Keepers(config({**MORNING, "lead": "2h"}), store).step()
        assert leases(store) == {}

    def test_overlapping_windows_are_one_lease(self, store: Store, clock: VirtualClock) -> None:
        hourly = Keepers(config({**MORNING, "cron": "0 * * * *", "lead": 0}), store)
        clock.now = NINE
        hourly.step()
        clock.now = NINE + HOUR
        hourly.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR}
        assert written(store) == ["prewarm:morning"]
        assert store.snapshot(GPU).leases[0].reason == "10:00-13:00 Europe/Berlin"
        # `down` gives up the window; the next one, which opens an hour later, is another.
        store.release(GPU, actor="ada")
        clock.advance(HOUR - 1)
        hourly.step()
        assert leases(store) == {}
        clock.advance(1)
        hourly.step()
        assert leases(store) == {"prewarm:morning": 3 * HOUR}

    def test_a_scheduler_with_a_shorter_lead_takes_nothing_back(
        self, store: Store, clock: VirtualClock
    ) -> None:
        hourly = {**MORNING, "cron": "0 * * * *"}
        clock.now = NINE + 1800
        early = Keepers(config({**hourly, "lead": "45m"}), store)
        late = Keepers(config({**hourly, "lead": 0}), store)
        for plan in (early, late, early, late):
            plan.step()
            assert leases(store) == {"prewarm:morning": 3 * HOUR + 1800}
        assert written(store) == ["prewarm:morning"]

    def test_a_changed_duration_holds_for_the_open_window(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE
        morning.step()
        Keepers(config({**MORNING, "duration": "1h"}), store).step()
        assert leases(store) == {"prewarm:morning": HOUR}
        assert written(store) == ["prewarm:morning"]

    def test_two_schedules_of_one_gpu(self, store: Store, clock: VirtualClock) -> None:
        late = {**MORNING, "name": "late", "cron": "0 11 * * *"}
        plan = Keepers(config(MORNING, late), store)
        clock.now = NINE + 2.5 * HOUR
        plan.step()
        assert leases(store) == {"prewarm:morning": HOUR / 2, "prewarm:late": 2.5 * HOUR}
        clock.now = NINE + 4 * HOUR
        assert leases(store) == {"prewarm:late": HOUR}

    def test_under_a_block_it_is_held_until_the_block_ends(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE - HOUR
        store.block(GPU, "maintenance:ada", 2 * HOUR, reason="", actor="ada")
        clock.now = NINE
        morning.step()
        assert not store.snapshot(GPU).wanted
        clock.now = NINE + HOUR
        assert store.snapshot(GPU).wanted

    def test_it_wakes_a_gpu_that_nothing_else_wakes_and_why_says_so(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE
        morning.step()
        snapshot = store.snapshot(GPU)
        reasons = [str(reason) for reason in explain(snapshot, store.events(GPU))]
        assert any(
            text.startswith("kept on by the schedule morning: 09:00-12:00 Europe/Berlin")
            for text in reasons
        )
        assert snapshot.wanted

    @pytest.mark.parametrize(
        ("day", "opens", "ends"),
        [
            (datetime(2026, 3, 29, tzinfo=BERLIN), "03:00", "04:00"),
            (datetime(2026, 10, 25, tzinfo=BERLIN), "02:30", "02:30"),
        ],
    )
    def test_half_past_two_when_clocks_are_changed(
        self, store: Store, clock: VirtualClock, day: datetime, opens: str, ends: str
    ) -> None:
        """Once, on the day without that time and on the day that has it twice."""
        night = {**MORNING, "cron": "30 2 * * *", "duration": "1h", "lead": 0}
        plan = Keepers(config(night), store)
        clock.now = day.timestamp()
        spans = []
        held: set[str] = set()
        for _ in range(6 * 60):
            plan.step()
            now = set(leases(store))
            if now != held:
                spans.append(f"{datetime.fromtimestamp(clock.now, BERLIN):%H:%M}")
                held = now
            clock.advance(60)
        assert spans == [opens, ends]
        assert len(written(store)) == 1


class TestOffHours:
    def test_a_block_for_the_window(self, store: Store, clock: VirtualClock) -> None:
        plan = Keepers(config(off_hours=(NIGHT,)), store)
        clock.now = NINE + 10.999 * HOUR
        plan.step()
        assert leases(store) == {}
        clock.now = NINE + 11 * HOUR
        plan.step()
        assert leases(store) == {"off-hours:night": 11 * HOUR}
        status = page_status(store.snapshot(GPU), [], config().gpu[GPU], may_wake=True)
        assert status["blocked"] == {
            "kind": "off-hours",
            "by": "schedule night",
            "reason": "20:00-07:00 Europe/Berlin",
            "seconds_left": 11 * HOUR,
        }

    def test_unblock_lasts_until_the_next_window(self, store: Store, clock: VirtualClock) -> None:
        plan = Keepers(config(off_hours=(NIGHT,)), store)
        clock.now = NINE + 12 * HOUR
        plan.step()
        assert store.unblock(GPU, actor="ada") == ["off-hours:night"]
        for _ in range(3):
            clock.advance(HOUR)
            plan.step()
            assert leases(store) == {}
        clock.now = NINE + DAY + 11 * HOUR
        plan.step()
        assert leases(store) == {"off-hours:night": 11 * HOUR}
        assert written(store) == ["off-hours:night"] * 2

    def test_down_does_not_lift_it_and_unblock_drops_no_lease(
        self, store: Store, clock: VirtualClock
    ) -> None:
        all_day = {**MORNING, "cron": "0 0 * * *", "duration": "1d", "lead": 0}
        plan = Keepers(config(all_day, off_hours=(NIGHT,)), store)
        clock.now = NINE + 12 * HOUR
        plan.step()
        assert set(leases(store)) == {"prewarm:morning", "off-hours:night"}
        assert not store.snapshot(GPU).wanted
        store.unblock(GPU, actor="ada")
        plan.step()
        assert set(leases(store)) == {"prewarm:morning"}

    def test_running_work_is_not_cut(self, store: Store, clock: VirtualClock) -> None:
        plan = Keepers(config(off_hours=(NIGHT,)), store)
        clock.now = NINE + 11 * HOUR
        store.demand(GPU, "request:ada", 60, reason="request", actor="ada")
        plan.step()
        assert "cut" not in store.snapshot(GPU).state

    def test_why_names_the_schedule_behind_a_stop(self, store: Store, clock: VirtualClock) -> None:
        plan = Keepers(config(off_hours=(NIGHT,)), store)
        boot(store, clock, 1, 1, 1)
        clock.now = NINE + 11 * HOUR
        lock, _, _ = store.acquire(GPU, "c", 60.0)
        assert lock
        plan.step()
        for source, to in ((Phase.OFF, Phase.BOOTING), (Phase.BOOTING, Phase.STOPPING)):
            move = Move(to, "blocked", Guard.NONE)
            assert store.transition(GPU, lock, source, move, drain=0, idle_timeout=1) is Outcome.OK
        reasons = [str(reason) for reason in explain(store.snapshot(GPU), store.events(GPU))]
        assert any("the off-hours night: 20:00-07:00 Europe/Berlin" in text for text in reasons)
        assert not any("qwenctl block" in text for text in reasons)


class TestConfiguration:
    def test_calendar_files_are_read_anew(
        self,
        store: Store,
        clock: VirtualClock,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        file = tmp_path / "days.ics"
        file.write_text("BEGIN:VCALENDAR\nEND:VCALENDAR\n")
        plan = Keepers(config({**MORNING, "exceptions": [str(file)]}), store)
        file.write_text(
            "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20261123\nEND:VEVENT\nEND:VCALENDAR\n"
        )
        clock.now = NINE
        plan.step()
        assert leases(store) == {}
        file.write_text("<html>gone</html>")
        with caplog.at_level(logging.WARNING, "qwenctl.control.holders"):
            plan.step()
            plan.step()
        assert leases(store) == {}
        assert caplog.text.count("going on with what was read before") == 1
        assert "gpu.main.prewarm: morning: exceptions:" in caplog.text
        clock.now = NINE + DAY
        plan.step()
        assert "prewarm:morning" in leases(store)

    def test_a_calendar_that_cannot_be_known_is_said_and_holds_up_nothing(
        self, store: Store, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "days.ics"
        file.write_text("BEGIN:VCALENDAR\nEND:VCALENDAR\n")
        gpu = config({**MORNING, "exceptions": [str(file)]})
        plan = Keeper(gpu, GPU, store)
        file.unlink()
        os.mkfifo(file)
        clock.now = NINE
        began = time.monotonic()
        plan.step(release=True)
        assert time.monotonic() - began < 2.0
        assert "prewarm:morning" in leases(store)  # by what was read before
        said = "a schedule is not known: gpu.main.prewarm: morning: exceptions: cannot read"
        texts = [str(reason) for reason in explain(store.snapshot(GPU), [])]
        assert any(text.startswith(said) and "it is a pipe" in text for text in texts)
        file.unlink()
        file.write_text("BEGIN:VCALENDAR\nEND:VCALENDAR\n")
        plan.step(release=True)
        assert not store.snapshot(GPU).state["schedule_trouble"]

    def test_a_disk_that_does_not_answer_holds_up_no_start(
        self, store: Store, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "days.ics"
        file.write_text("BEGIN:VCALENDAR\nEND:VCALENDAR\n")
        answers = threading.Event()
        monkeypatch.setattr(holidays, "READ_SECONDS", 0.2)
        original = os.stat

        def hang(path: Any, **options: Any) -> os.stat_result:
            if str(path) == str(file):
                answers.wait(30)
            return original(path, **options)

        monkeypatch.setattr(os, "stat", hang)
        two = config({**MORNING, "exceptions": [str(file)]}, {**MORNING, "name": "other"})
        plan = Keeper(two, GPU, store)
        clock.now = NINE
        plan.step(release=True)
        assert list(leases(store)) == ["prewarm:other"]
        trouble = store.snapshot(GPU).state["schedule_trouble"]
        assert "no answer within 0.2 s; it is not followed until then" in trouble
        answers.set()
        deadline = time.monotonic() + 10
        while "prewarm:morning" not in leases(store):
            assert time.monotonic() < deadline
            plan.step(release=True)

    def test_a_missing_calendar_file_is_an_error_at_the_start(self, store: Store) -> None:
        with pytest.raises(ConfigError, match=r"morning: exceptions: cannot read .*no\.ics"):
            Keepers(config({**MORNING, "exceptions": ["no.ics"]}), store)

    def test_a_gpu_in_trouble_stops_no_other(
        self, store: Store, clock: VirtualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        all_day = {**MORNING, "duration": "1d", "lead": 0}
        tables = {"a": {"prewarm": [all_day]}, GPU: {"prewarm": [all_day], "hosts": ["b.example"]}}
        plan = Keepers(Config.model_validate({"gpu": tables}), store)
        settings = plan.of["a"]._settings
        broken = replace(settings.schedules[0], cron=None)  # type: ignore[arg-type]
        plan.of["a"]._settings = replace(settings, schedules=(broken,))
        clock.now = NINE
        with caplog.at_level(logging.ERROR, "qwenctl.control.holders"):
            for _ in range(3):
                assert 0 < plan.step() <= 10
        assert leases(store) == {"prewarm:morning": DAY}
        assert caplog.text.count("a: its schedules cannot be followed") == 1

    def test_without_schedules_there_is_nothing_to_do(self, store: Store) -> None:
        assert Keepers(config(), store).step() == LOOK_SECONDS
        assert written(store) == []

    def test_it_runs_until_it_is_stopped(
        self, store: Store, clock: VirtualClock, morning: Keepers
    ) -> None:
        clock.now = NINE
        stop = threading.Event()
        controller = Controller(GPU, GpuConfig(), store, Cloud(clock, boot=HOUR))
        runs = ((controller.run, stop), (morning.of[GPU].run, stop, controller.leads))
        threads = [threading.Thread(target=run, args=args, daemon=True) for run, *args in runs]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while store.snapshot(GPU).phase is not Phase.STARTING:
            assert time.monotonic() < deadline
        stop.set()
        controller.wake()
        assert leases(store) == {"prewarm:morning": 3 * HOUR}
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()

    @pytest.mark.parametrize(
        ("env", "link", "name"),
        [
            ({"TZ": "Asia/Shanghai"}, "Europe/Berlin", "Asia/Shanghai"),
            ({"TZ": ":Asia/Shanghai"}, "", "Asia/Shanghai"),
            ({}, "Europe/Berlin", "Europe/Berlin"),
            ({"TZ": ""}, "", "UTC"),
        ],
    )
    def test_the_machines_time_zone(
        self, tmp_path: Path, env: dict[str, str], link: str, name: str
    ) -> None:
        if link:
            place = tmp_path / "share" / "zoneinfo" / link
            place.parent.mkdir(parents=True)
            place.touch()
            (tmp_path / "localtime").symlink_to(place)
        assert str(machine_zone(env, tmp_path)) == name

    def test_the_machines_time_zone_by_a_file(self, tmp_path: Path) -> None:
        """``TZ=:/etc/localtime`` is a common setting."""
        place = tmp_path / "share" / "zoneinfo" / "Asia" / "Shanghai"
        place.parent.mkdir(parents=True)
        place.touch()
        local = tmp_path / "localtime"
        local.symlink_to(place)
        for named in (f":{local}", str(local), f":{place}"):
            assert str(machine_zone({"TZ": named}, tmp_path)) == "Asia/Shanghai"

    def test_a_copied_zone_has_the_name_that_etc_timezone_says(self, tmp_path: Path) -> None:
        found = [path for root in TZPATH if (path := Path(root, "Asia/Shanghai")).is_file()]
        if not found:
            pytest.skip("this machine has no zone files")
        local = tmp_path / "localtime"
        local.write_bytes(found[0].read_bytes())
        assert str(machine_zone({}, tmp_path)) == "local time"
        (tmp_path / "timezone").write_text("Asia/Shanghai\n")
        assert str(machine_zone({}, tmp_path)) == "Asia/Shanghai"
        assert str(machine_zone({"TZ": f":{local}"}, tmp_path)) == "Asia/Shanghai"
        (tmp_path / "timezone").write_text("Europe/Berlin\n")  # outdated
        zone = machine_zone({}, tmp_path)
        assert datetime.fromtimestamp(0, zone).hour == 8

    def test_a_time_zone_that_cannot_be_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"TZ=CET-1CEST\S+; set `timezone`"):
            machine_zone({"TZ": "CET-1CEST,M3.5.0"}, tmp_path)
        (tmp_path / "localtime").write_text("no zone")
        with pytest.raises(ConfigError, match="localtime; set `timezone`"):
            machine_zone({}, tmp_path)

    def test_schedules_of_the_configuration(self) -> None:
        plan = schedules(config(MORNING, off_hours=(NIGHT,)), GPU)
        assert [(s.lease, s.lead) for s in plan] == [
            ("prewarm:morning", None),
            ("off-hours:night", 0.0),
        ]
