"""Commands follow a GPU whoever leads: `qwenctl.control.standalone` on a real Valkey, virtual time.

Each round of `snapshots` makes one pass of our controller, unless another holds the lock; then a
second of virtual time goes by. So there are no threads and no real waiting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenctl.clouds.base import Denied, NoCapacity
from qwenctl.config.deployment import Config
from qwenctl.control import standalone
from qwenctl.control.controller import Controller
from qwenctl.control.standalone import Progress
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import ExitCode, UserError
from qwenctl.store.store import Store
from tests.simulation.life import Life
from tests.simulation.world import GPU, Cloud
from tests.support.virtual_time import VirtualClock

DAY = 86400.0


class Stepped(Progress):
    """Makes the passes of its controller between two snapshots, and lets time go by."""

    life: Life
    meanwhile: Callable[[], None] = staticmethod(lambda: None)
    """What others do each second."""

    def _reconcile(self) -> None:
        self._controller = self._controller or self._make_controller()
        self._controller.step()

    def _pause(self, seconds: float) -> None:
        self.meanwhile()
        self.life.clock.advance(min(1.0, seconds))

    def __exit__(self, *exception: object) -> None:
        if self._controller:
            self._controller._give_up_lock()
        super().__exit__(*exception)

    def until(self, condition: Callable[[Snapshot], bool], seconds: float = 120.0) -> Snapshot:
        deadline = self.life.clock() + seconds
        for snapshot in self.snapshots(every=1.0, deadline=deadline):
            if condition(snapshot):
                return snapshot
        raise AssertionError(f"still {self.last.phase}")


@pytest.fixture
def begin(
    life: Life, store: Store, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.setattr(standalone, "make_provider", lambda *_: life.cloud)
    # What is asked over HTTP has no virtual time: its agent reports to the store itself.
    monkeypatch.setattr(Controller, "_probe_says_ready", lambda *_: False)

    @contextlib.contextmanager
    def begin(speaks: bool = True, **settings: Any) -> Iterator[Stepped]:
        keep_found = settings.pop("keep_found", True)
        config = Config.model_validate({"gpu": {GPU: settings}})
        first = store.snapshot(GPU)
        progress = Stepped(config, GPU, store, first, keep_found=keep_found, monotonic=clock)
        progress.life = life
        if speaks:
            progress.meanwhile = life.node.speak  # type: ignore[method-assign]
        with progress:
            yield progress

    return begin


def pin(store: Store) -> None:
    store.pin(GPU, "pin:ada", 3600.0, reason="", actor="ada")


def left(life: Life, phase: Phase) -> None:
    """A proxy brings it so far and ends; a day passes."""
    life.demand()
    speaks = phase in (Phase.READY, Phase.LOADING)
    if phase is Phase.LOADING:
        life.node.load = 1e9
    life.run(20, speaks=speaks)
    assert life.phase() is phase
    life.controller._give_up_lock()
    life.clock.advance(DAY)


def test_where_nobody_leads_our_controller_starts_it(begin: Any, life: Life, store: Store) -> None:
    with begin() as progress:
        assert progress.alone
        pin(store)
        ready = progress.until(progress.ready)
        assert (ready.leader, progress.alone) == (progress.owner, True)
    assert len(life.cloud.starts) == 1
    assert store.snapshot(GPU).leader == ""  # the lock was given back


def test_where_another_leads_it_is_only_followed(begin: Any, life: Life, store: Store) -> None:
    life.step()
    pin(store)
    with begin() as progress:
        assert not progress.alone
        first = next(progress.snapshots(every=1.0))
        assert progress._controller is None  # no provider is made for who needs none
        assert first.phase is Phase.OFF
        progress.meanwhile = life.step
        ready = progress.until(lambda snapshot: snapshot.phase is Phase.BOOTING)
        assert ready.leader == life.controller._owner
    assert len(life.cloud.starts) == 1


def test_a_leader_that_dies_in_the_middle_is_taken_over_from(
    begin: Any, life: Life, store: Store
) -> None:
    life.step()
    life.cloud.boot = 20.0
    with begin() as progress:
        pin(store)
        life.step()
        assert life.phase() is Phase.STARTING
        ready = progress.until(progress.ready)  # its lock runs out first
        assert ready.leader == progress.owner
    assert len(life.cloud.starts) == 1


def test_a_leader_that_appears_in_the_middle_is_followed(
    begin: Any, life: Life, store: Store
) -> None:
    life.cloud.boot = 20.0
    with begin() as progress:
        pin(store)
        progress.until(lambda snapshot: snapshot.phase is Phase.STARTING)
        progress._controller._give_up_lock()  # it was frozen for a while
        life.step()
        progress.meanwhile = lambda: (life.step(), life.node.speak())
        ready = progress.until(progress.ready)
        assert (ready.leader, progress.alone) == (life.controller._owner, False)
    assert len(life.cloud.starts) == 1


BEGUN = [Phase.BOOTING, Phase.LOADING, Phase.READY]


@pytest.mark.parametrize("phase", BEGUN)
def test_what_ended_unseen_is_no_failure(
    begin: Any, life: Life, store: Store, phase: Phase
) -> None:
    left(life, phase)
    life.cloud.die()
    life.node.load = 0.0
    with begin() as progress:
        pin(store)
        shown = [progress.until(lambda _: True)]
        assert shown[0].phase in (Phase.OFF, Phase.STARTING, Phase.BOOTING)  #
        assert shown[0].failure is None
        before = len(life.cloud.starts)
        progress.until(progress.ready, seconds=life.gpu.timing.retry)  # at once
        assert before == len(life.cloud.starts) == 2
    assert "instance_lost" not in [e.fields.get("to") for e in store.events(GPU)]


def test_what_ends_while_we_look_is_a_failure(begin: Any, life: Life, store: Store) -> None:
    life.node.load = 1e9
    with begin() as progress:
        pin(store)
        progress.until(lambda snapshot: snapshot.phase is Phase.LOADING)
        life.cloud.die()
        failed = progress.until(lambda snapshot: progress.failure(snapshot) is not None)
        assert failed.failure
        assert failed.failure.code == "instance_lost"


@pytest.mark.parametrize("phase", BEGUN)
def test_what_goes_on_running_is_ready_once_it_has_been_seen(
    begin: Any, life: Life, store: Store, phase: Phase
) -> None:
    left(life, phase)
    life.node.load = 0.0
    with begin() as progress:
        pin(store)
        ready = progress.until(progress.ready)
        assert (ready.time("observed_at") or 0.0) >= progress.first.now
    assert len(life.cloud.starts) == 1


def test_what_may_not_be_looked_at_is_a_failure_whatever_is_recorded(
    begin: Any, life: Life, store: Store
) -> None:
    left(life, Phase.READY)
    life.cloud.refuse_describe = lambda: Denied("no permission")
    with begin() as progress:
        pin(store)
        shown = progress.until(lambda _: True)
        assert not progress.ready(shown)
        failure = progress.failure(shown)
        assert failure
        assert (failure.code, failure.message) == ("denied", "no permission")
        with pytest.raises(UserError) as caught:
            progress.hand_over()
    assert caught.value.exit_code is ExitCode.DENIED


def test_a_look_that_is_refused_later_ends_nothing(begin: Any, life: Life, store: Store) -> None:
    life.node.load = 30.0
    with begin() as progress:
        pin(store)
        progress.until(lambda snapshot: snapshot.phase is Phase.LOADING)
        life.cloud.refuse_describe = lambda: Denied("no permission")
        progress.until(lambda snapshot: bool(snapshot.state.get("observe_error")))
        assert progress.failure(progress.last) is None
        life.cloud.refuse_describe = lambda: None
        progress.until(progress.ready)


def test_an_earlier_failure_is_none_of_this_command(begin: Any, life: Life, store: Store) -> None:
    life.cloud.refuse_start = lambda: NoCapacity("none left")
    with begin() as progress:
        pin(store)
        progress.until(lambda snapshot: progress.failure(snapshot) is not None)
    with begin() as progress:
        shown = progress.until(lambda _: True)
        assert (shown.phase, progress.failure(shown)) == (Phase.FAILED, None)
        failed = progress.until(lambda snapshot: progress.failure(snapshot) is not None)
        assert failed.failure
        assert failed.failure.attempts == 2


class TestHandOver:
    def test_makes_the_call_and_waits_for_nothing_more(
        self, begin: Any, life: Life, store: Store
    ) -> None:
        life.cloud.boot = DAY
        with begin() as progress:
            pin(store)
            progress.hand_over()
        assert (len(life.cloud.starts), life.phase()) == (1, Phase.STARTING)

    def test_leaves_it_to_whoever_leads(self, begin: Any, life: Life, store: Store) -> None:
        life.step()
        with begin() as progress:
            pin(store)
            progress.hand_over()
        assert life.cloud.starts == []

    @pytest.mark.parametrize("runs", [True, False])
    def test_what_is_as_wanted_needs_no_call(
        self, begin: Any, life: Life, store: Store, runs: bool
    ) -> None:
        if runs:
            left(life, Phase.READY)
            pin(store)
        with begin() as progress:
            progress.hand_over()
        assert len(life.cloud.starts) == runs
        assert life.cloud.stops == []

    def test_a_block_stops_what_was_left_on(self, begin: Any, life: Life, store: Store) -> None:
        left(life, Phase.READY)
        life.cloud.halt = DAY
        with begin() as progress:
            store.block(GPU, "maintenance:ada", None, reason="", actor="ada")
            progress.hand_over()
        assert (len(life.cloud.stops), life.phase()) == (1, Phase.STOPPING)

    def test_what_cannot_be_called_in_time_is_a_timeout(
        self, begin: Any, life: Life, store: Store
    ) -> None:
        life.cloud._enter(Observed.STOPPING, DAY)
        with begin() as progress:
            pin(store)
            with pytest.raises(UserError, match="start call was not made within 60 s") as caught:
                progress.hand_over()
        assert caught.value.exit_code is ExitCode.TIMEOUT


class TestOff:
    def test_what_runs_unseen_is_not_off_and_is_stopped(self, begin: Any, life: Life) -> None:
        life.cloud.start_outside()
        with begin(keep_found=False) as progress:
            shown = progress.until(lambda _: True)
            assert not progress.off(shown)
            progress.until(progress.off)
        assert (life.cloud.state, len(life.cloud.stops)) == (Observed.STOPPED, 1)

    def test_what_runs_unseen_is_stopped_soon_where_no_agent_can_be_heard(
        self, begin: Any, life: Life, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for listeners, seconds in ((1, 4.0), (2, 12.0)):
            monkeypatch.setattr(store, "listeners", lambda _, count=listeners: count)
            life.cloud.start_outside()
            began = life.clock()
            with begin(keep_found=False, speaks=False) as progress:
                progress.until(progress.off)
            assert seconds <= life.cloud.stops[-1] - began <= seconds + 4.0

    def test_what_is_off_is_off_when_the_cloud_says_so(self, begin: Any) -> None:
        with begin(keep_found=False) as progress:
            assert progress.off(progress.until(lambda _: True))

    def test_waiting_in_vain_has_a_reason(self, begin: Any, life: Life) -> None:
        life.cloud.start_outside()
        with begin(keep_found=False, found_running="ignore") as progress:
            shown = progress.until(lambda _: True)
            assert "found_running = ignore" in progress.stuck(shown)
            assert not progress.off(shown)
        life.clock.advance(DAY)
        life.cloud.refuse_describe = lambda: Denied("no permission")
        with begin(keep_found=False) as progress:
            assert "no permission" in progress.stuck(progress.until(lambda _: True))


def test_a_bad_instance_is_stopped_unless_another_leads(
    begin: Any, life: Life, store: Store
) -> None:
    life.node.mood = "broken"
    with begin() as progress:
        pin(store)
        progress.until(lambda snapshot: progress.failure(snapshot) is not None)
        store.release(GPU, actor="ada", only="pin:ada")
        progress.settle(progress.failure(progress.last))
        assert (life.phase(), life.cloud.state) == (Phase.OFF, Observed.STOPPED)


@pytest.mark.parametrize("looks", [False, True])
def test_nothing_is_yielded_before_a_step_has_followed_from_a_look(
    begin: Any, life: Life, store: Store, looks: bool
) -> None:
    left(life, Phase.READY)
    with begin() as progress:

        def look_only() -> None:
            lock, _, _ = store.acquire(GPU, progress.owner, 10.0)
            if looks:
                store.record_observation(GPU, lock, state="stopped")

        progress._reconcile = look_only
        deadline = life.clock() + 5
        assert list(progress.snapshots(every=1.0, deadline=deadline)) == []


def test_the_thread_of_our_controller_ends_with_the_command(
    life: Life, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, in real time: the only test with a thread."""
    cloud = Cloud(life.clock)
    monkeypatch.setattr(standalone, "make_provider", lambda *_: cloud)
    config = Config.model_validate({"gpu": {GPU: {}}})
    pin(store)
    with Progress(config, GPU, store, store.snapshot(GPU)) as progress:
        life.clock.advance(1.0)
        progress.hand_over()
        assert progress._thread
        assert progress._thread.is_alive()
    assert not progress._thread.is_alive()
    assert (len(cloud.starts), store.snapshot(GPU).leader) == (1, "")
