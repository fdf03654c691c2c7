"""Follow a GPU, and reconcile it as long as no other process does.

A command writes its lease or block, then reads `Progress.snapshots` until its condition holds. It
need not know which process leads:

=====================  ==================================================================
the lock is held by    what happens
=====================  ==================================================================
another process        the snapshots are followed; that process starts and stops
nobody                 an ordinary `Controller` in a thread takes the lock
another, which dies    our controller takes the lock once it has run out
=====================  ==================================================================

Where no process has led, the recorded phase is only the last known state. So no snapshot is yielded
before the cloud has been observed and the controller has made a step by it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qwenctl.clouds.claimed import claiming
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.control.controller import Controller, owner_name
from qwenctl.control.former import ConfiguredController
from qwenctl.core import failures
from qwenctl.core.events import Event
from qwenctl.core.failures import Failure
from qwenctl.core.observer import Observer
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY
from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.descriptors import raise_limit
from qwenctl.lib.text import one_line
from qwenctl.store.deployment_id import cached_id
from qwenctl.store.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

CALL_SECONDS = 60.0
"""Seconds within which the start or stop call must be made."""

SETTLE_SECONDS = 120.0
"""Seconds to wait for a failed instance to be stopped."""

JOIN_SECONDS = 10.0
"""Seconds to wait at the end for a cloud call under way."""

_DENIED = (failures.CLAIMED, failures.DENIED)
"""Codes of a denied look."""

_EXIT_CODES = {
    failures.NO_CAPACITY: ExitCode.NO_CAPACITY,
    **dict.fromkeys(_DENIED, ExitCode.DENIED),
}


def wake_error(name: str, failure: Failure, more: str = "") -> UserError:
    """Return the error to raise for a GPU that did not come up."""
    text = f"{name} did not come up ({failure.code}): {one_line(failure.message)}{more}"
    return UserError(text, exit_code=_EXIT_CODES.get(failure.code, ExitCode.FAILED))


class Follower:
    """Reads the snapshots of a GPU as it changes. A context manager."""

    def __init__(
        self, store: Store, name: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._store, self._monotonic = store, monotonic
        self.events: list[Event] = store.events(name, HISTORY)
        self._changed = threading.Event()
        self._watcher = store.watch([name], lambda *_: self._tell())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Its read under way may last a second; do not wait for that.
        threading.Thread(target=self._watcher.stop, daemon=True).start()

    def snapshots(self, *, every: float, deadline: float | None = None) -> Iterator[Snapshot]:
        """Yield a snapshot now, at each change, and at least each ``every`` seconds.

        `events` goes along. End at the deadline (monotonic), after one last snapshot.
        """
        while True:
            self._changed.clear()
            last = self.events[-1].id if self.events else "0"
            self.events += self._store.events(self.name, 1000, after=last)
            yield self._store.snapshot(self.name)
            left = every if deadline is None else min(every, deadline - self._monotonic())
            if left <= 0:
                return
            self._pause(left)

    def _tell(self) -> None:
        self._changed.set()

    def _pause(self, seconds: float) -> None:
        self._changed.wait(seconds)


class Progress(Follower, Observer):
    """Follows a GPU for a command, and reconciles it while no other process leads."""

    def __init__(
        self,
        config: Config,
        name: str,
        store: Store,
        first: Snapshot,
        *,
        keep_found: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            first: the state before the command wrote anything.
            keep_found: if false, an instance found running without a lease is stopped instead of
                adopted (but ignored if so configured).

        Raises:
            ConfigError: no process leads, and the provider cannot be made.
        """
        self.name, self.first, self.last = name, first, first
        self.owner = owner_name()
        self._config, self._gpu, self._keep_found = config, config.gpu[name], keep_found
        self._store, self._monotonic = store, monotonic
        self._trusted = bool(first.leader)
        """A process led when we began, so the recorded phase is current."""
        self._decided = self._seen = self._denied = False
        """Whether our controller has made a step after an observation; observed the cloud; was denied
        the first observation."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._controller = None if self._trusted else self._make_controller()
        super().__init__(store, name, monotonic=monotonic)

    def __exit__(self, *exception: object) -> None:
        if self._thread and self._controller:
            self._stop.set()
            self._controller.wake()
            self._thread.join(JOIN_SECONDS)
        super().__exit__(*exception)

    @property
    def alone(self) -> bool:
        """Return whether no other process leads, as of the last snapshot."""
        return self.last.leader in ("", self.owner)

    def refresh(self) -> Snapshot:
        """Return the state as of this call."""
        self.last = self._store.snapshot(self.name)
        return self.last

    def snapshots(self, *, every: float, deadline: float | None = None) -> Iterator[Snapshot]:
        """Yield snapshots as `Follower` does, from the first that is current."""
        for self.last in super().snapshots(every=every, deadline=deadline):
            if self._trusted or (self._looked and (self._decided or not self.alone)):
                yield self.last
            self._reconcile()

    @property
    def _looked(self) -> bool:
        """Return whether the cloud was observed since we began."""
        return (self.last.time("observed_at") or 0.0) >= self.first.now

    # Our own controller

    def _make_controller(self) -> Controller:
        gpu = self._gpu
        if not self._keep_found and gpu.found_running == "adopt":
            gpu = gpu.model_copy(update={"found_running": "stop"})
        raise_limit()
        return ConfiguredController(
            self.name,
            gpu,
            self._store,
            claiming(
                make_provider(self.name, gpu, self._config),
                f"{self._config.deployment}/{self.name}",
                cached_id(self._store, self._config.state_path),
            ),
            config=self._config,
            owner=self.owner,
            standalone=True,
            monotonic=self._monotonic,
            observer=self,
        )

    def _reconcile(self) -> None:
        """Run our controller; while another leads, it waits for the lock."""
        if self._thread:
            return
        self._controller = self._controller or self._make_controller()
        self._thread = threading.Thread(
            target=self._controller.run,
            args=(self._stop,),
            kwargs={"watch": False},
            name="reconciler",
            daemon=True,
        )
        self._thread.start()

    def _tell(self) -> None:
        super()._tell()
        if self._controller:
            self._controller.wake()

    def called_cloud(self, gpu: str, action: str, outcome: str, seconds: float) -> None:  # noqa: ARG002
        if action == "describe":
            self._seen = self._seen or outcome == "ok"
            self._denied = outcome in _DENIED and not self._seen

    def stepped(self, gpu: str, step: str, seconds: float) -> None:  # noqa: ARG002
        if not self._decided and step != "observe":
            self._decided = True
            self._changed.set()

    # Conditions of a snapshot

    def ready(self, snapshot: Snapshot) -> bool:
        """Return whether the GPU is ready, and on according to the cloud."""
        return snapshot.phase is Phase.READY and (self._trusted or _on(snapshot))

    def off(self, snapshot: Snapshot) -> bool:
        """Return whether the GPU is off, also according to the cloud."""
        return snapshot.phase is Phase.OFF and (self._trusted or snapshot.observed.gone)

    def stuck(self, snapshot: Snapshot) -> str:
        """Return why the GPU cannot go off, or an empty string."""
        if self._trusted or snapshot.phase not in (Phase.OFF, Phase.FAILED):
            return ""
        if error := snapshot.state.get("observe_error"):
            return f"{self.name}: the cloud cannot be asked whether it is on: {one_line(error)}"
        running = snapshot.observed is Observed.RUNNING
        if running and snapshot.phase is Phase.OFF and self._gpu.found_running == "ignore":
            return (
                f"{self.name} was found running and is left alone (found_running = ignore): stop "
                "it in the cloud's console"
            )
        return ""

    def failure(self, snapshot: Snapshot) -> Failure | None:
        """Return a failure since we began; an earlier failure is already being retried.

        A denied observation counts as new each time, since nothing is retried then.
        """
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure and failure != self.first.failure:
            return failure
        denied = self._denied or (failure is not None and failure.code in _DENIED)
        if denied and self._looked_in_vain(snapshot):
            text = snapshot.state["observe_error"]
            code = snapshot.state.get("observe_code") or failures.DENIED
            return Failure(code, text, 1, 0.0, instance_is_bad=False)
        return None

    def _looked_in_vain(self, snapshot: Snapshot) -> bool:
        return self._looked and bool(snapshot.state.get("observe_error"))

    # Waiting

    def hand_over(self) -> None:
        """Return when the due start or stop call has been made, or another process leads.

        Raises:
            UserError: the call was refused, or not made in time (`ExitCode.TIMEOUT`).
        """
        deadline = self._monotonic() + CALL_SECONDS
        for snapshot in self.snapshots(every=5.0, deadline=deadline):
            if not self.alone or self._called(snapshot):
                return
            if failure := self.failure(snapshot):
                raise wake_error(self.name, failure)
        last = self.last
        if not last.wanted and last.working:
            return  # the next leader stops it after the work
        if last.phase is Phase.FAILED and last.failure:
            raise wake_error(self.name, last.failure)
        verb = "start" if last.wanted else "stop"
        raise UserError(
            f"{self.name}: the {verb} call was not made within {CALL_SECONDS:.0f} s",
            ExitCode.TIMEOUT,
        )

    def _called(self, snapshot: Snapshot) -> bool:
        """Return whether the due call was made since we began, or none is due."""
        called = snapshot.time("called_at")
        calls = snapshot.phase is (Phase.STARTING if snapshot.wanted else Phase.STOPPING)
        if calls and called is not None and called > self.first.now:
            return True
        if snapshot.wanted:
            return _on(snapshot) and (snapshot.phase.waking or snapshot.phase is Phase.READY)
        if calls:
            return snapshot.observed is Observed.STOPPING
        left_alone = self._gpu.found_running == "ignore" or not _on(snapshot)
        return snapshot.phase is Phase.OFF and left_alone

    def settle(self, failure: Failure) -> None:
        """Wait until the instance that failed is stopped, unless another process leads."""
        deadline = self._monotonic() + SETTLE_SECONDS
        for snapshot in self.snapshots(every=5.0, deadline=deadline):
            if not self.alone or snapshot.phase is Phase.OFF or snapshot.wanted:
                return
            if failure.code in _DENIED and self._looked_in_vain(snapshot):
                return


def _on(snapshot: Snapshot) -> bool:
    """Return whether the instance is on according to the cloud."""
    return snapshot.observed in (Observed.STARTING, Observed.RUNNING)
