"""Controllers that stop at each point where another may act, and the cloud they call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis

from qwenctl.clouds.base import Accepted, Conflict, Observation, ProviderError, Transient
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store
from tests.support.virtual_time import VirtualClock

GPU = "main"

WORDS = {
    ("off", "starting"): "starting",
    ("loading", "ready"): "ready",
    ("ready", "draining"): "drain",
    ("draining", "ready"): "undrain",
    ("draining", "stopping"): "stopping",
    ("stopping", "off"): "off",
}
"""The model's names of the transitions."""


class Killed(BaseException):
    """The process of a controller ends here, as by SIGKILL."""


class Cloud:
    """One instance, as its cloud sees it. Latencies in seconds."""

    call_timeout = 5.0
    observe_interval = 2.0
    name = "i-1"

    def __init__(self, clock: VirtualClock, *, boot: float = 0.0, halt: float = 0.0) -> None:
        self._clock = clock
        self.boot, self.halt = boot, halt
        self._state = Observed.STOPPED
        self._settles_at = 0.0
        self.boots = 0
        """How often the instance came up, by whomever."""
        self.refuse_start: Callable[[], ProviderError | None] = lambda: None
        self.refuse_stop: Callable[[], ProviderError | None] = lambda: None
        self.refuse_describe: Callable[[], ProviderError | None] = lambda: None
        self.slow = False
        """Whether answers to looks are under way for long."""
        self.leaves_out: Callable[[], bool] = lambda: False
        """Whether an answer leaves the instance out, running or not."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when a running instance begins to stop because a controller said so."""
        self.on_down: Callable[[], None] = lambda: None
        """Called when the instance is no longer running, for whatever reason."""
        self.started_by_us = False
        self.starts: list[float] = []
        self.stops: list[float] = []
        self.second_starts: list[float] = []

    @property
    def state(self) -> Observed:
        if self._clock() >= self._settles_at:
            if self._state is Observed.STARTING:
                self._state = Observed.RUNNING
                self.boots += 1
            elif self._state is Observed.STOPPING:
                self._state = Observed.STOPPED
        return self._state

    def _enter(self, state: Observed, seconds: float) -> None:
        was_up = self.state is Observed.RUNNING
        self._state, self._settles_at = state, self._clock() + seconds
        if was_up:
            self.on_down()
        assert self.state  # settles at once where it takes no time

    # What controllers call

    def describe(self) -> Observation:
        if error := self.refuse_describe():
            raise error
        if self.leaves_out():
            return Observation(Observed.ABSENT, self.name, reason="there is no such instance")
        return self.shows(self.state)

    def shows(self, state: Observed) -> Observation:
        """Return the answer for an instance in that state."""
        return Observation(state, self.name, "192.0.2.1" if state is Observed.RUNNING else "")

    def start(self) -> Accepted:
        error = self.refuse_start()
        if error and not (isinstance(error, Transient) and error.cloud_code == "accepted"):
            raise error
        if self.state is Observed.STOPPING:
            raise Conflict("the instance is stopping")
        self.starts.append(self._clock())
        if self.state is Observed.STOPPED:
            self.started_by_us = True
            self._enter(Observed.STARTING, self.boot)
        elif self.started_by_us:
            self.second_starts.append(self._clock())
        if error:
            raise error
        return Accepted(f"start-{len(self.starts)}")

    def stop(self) -> Accepted:
        error = self.refuse_stop()
        if error and not (isinstance(error, Transient) and error.cloud_code == "accepted"):
            raise error
        if self.state is Observed.STARTING:
            raise Conflict("the instance is starting")
        self.stops.append(self._clock())
        if self.state is Observed.RUNNING:
            self.on_stop()
            self.started_by_us = False
            self._enter(Observed.STOPPING, self.halt)
        if error:
            raise error
        return Accepted(f"stop-{len(self.stops)}")

    # What others do

    def start_outside(self) -> None:
        if self.state is Observed.STOPPED:
            self._enter(Observed.STARTING, self.boot)

    def stop_outside(self) -> None:
        if self.state is Observed.RUNNING:
            self.started_by_us = False
            self._enter(Observed.STOPPING, self.halt)

    def die(self) -> None:
        if self.state is Observed.RUNNING:
            self.started_by_us = False
            self._enter(Observed.STOPPED, 0.0)


class PointedStore(Store):
    """A store that tells before each script, and may fail before or after it."""

    def __init__(
        self,
        client: redis.Redis,
        deployment: str,
        clock: VirtualClock,
        point: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(client, deployment, now=clock)
        self._point, self._tell = point, tell
        self.faults: list[str] = []
        """What becomes of the next script: ``lost`` before it ran, or its ``answer`` lost."""

    def _run(self, script: str, gpu: str, *args: str | int | float) -> Any:
        self._point(f"{script}:{args[2]}>{args[3]}" if script == "transition" else script)
        fault = self.faults.pop() if self.faults else ""
        if fault == "lost":
            raise StoreUnavailable("Redis cannot be reached")
        result = super()._run(script, gpu, *args)
        if script == "transition" and result == "ok":
            self._tell(WORDS.get((str(args[2]), str(args[3])), ""))
        if fault:
            raise StoreUnavailable("Redis cannot be reached")
        return result


class PointedProvider:
    """One controller's way to the cloud: tells before each call, and between call and answer."""

    def __init__(
        self, cloud: Cloud, point: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        self._cloud, self._point, self._tell = cloud, point, tell
        self.call_timeout, self.observe_interval = cloud.call_timeout, cloud.observe_interval

    def describe(self) -> Observation:
        self._point("describe")
        seen = self._cloud.describe()
        if self._cloud.slow:
            self._point("described")
        return seen

    def start(self) -> Accepted:
        self._point("call:start")
        self._tell("CLOUD START by ")
        accepted = self._cloud.start()
        self._point("called:start")
        return accepted

    def stop(self) -> Accepted:
        self._point("call:stop")
        self._tell("CLOUD STOP by ")
        accepted = self._cloud.stop()
        self._point("called:stop")
        return accepted


class PointedController(Controller):
    """The real one, with a point before the check of the lock (docs/architecture.md)."""

    point: Callable[[str], None]

    def _lock_outlives_call(self) -> bool:
        self.point("check")
        return super()._lock_outlives_call()


class WithoutLockRule(PointedController):
    """A call is made however long ago its decision was."""

    def _lock_outlives_call(self) -> bool:
        self.point("check")
        return True


class WithoutEpochRule(PointedController):
    """Who takes the lock anew goes on with what it had decided before."""

    def _lock_outlives_call(self) -> bool:
        if super()._lock_outlives_call():
            return True
        asked_at = self._monotonic()
        lock, _, _ = self._store.acquire(self.name, self._owner, self._ttl)
        self._lock_until = asked_at + self._ttl
        return lock is not None


class Puppet:
    """The process of one controller, moved from point to point."""

    def __init__(
        self,
        name: str,
        client: redis.Redis,
        deployment: str,
        clock: VirtualClock,
        cloud: Cloud,
        gpu: GpuConfig,
        tell: Callable[[str], None],
        kind: type[PointedController],
        adjust: Callable[[Controller], None],
    ) -> None:
        self.name, self._clock = name, clock
        self.at = ""
        """The point that it waits at; ``pass`` between two passes."""
        self.due = clock()
        """When its next pass is due."""
        self.error: BaseException | None = None
        self.trail: list[str] = []
        self._killed = False
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.store = PointedStore(client, deployment, clock, self._point, tell)
        self.controller = kind(
            GPU,
            gpu,
            self.store,
            PointedProvider(cloud, self._point, tell),
            owner=name,
            monotonic=clock,
        )
        self.controller.point = self._point
        adjust(self.controller)
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()
        self._arrived.acquire()

    def _point(self, what: str) -> None:
        self.at = what
        self._arrived.release()
        self._go.acquire()
        if self._killed:
            raise Killed
        self.trail.append(what)

    def _live(self) -> None:
        try:
            while True:
                self._point("pass")
                try:
                    self.due = self._clock() + self.controller.step()
                except StoreUnavailable:
                    self.due = self._clock() + 0.5
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.at = "dead"
        self._arrived.release()

    def go(self) -> str:
        """Let it take one instruction; where it waits then."""
        assert self.at != "dead"
        self._go.release()
        assert self._arrived.acquire(timeout=30)
        if self.error:
            raise self.error
        return self.at

    def go_to(self, point: str, limit: int = 200) -> None:
        """Let it go on until it waits before that point."""
        for _ in range(limit):
            if self.at == point:
                return
            self.go()
        raise AssertionError(f"{self.name} is at {self.at}, not at {point}: {self.trail[-20:]}")

    def go_past(self, point: str, limit: int = 200) -> None:
        """Let it go on until it has just done what comes after that point."""
        self.go_to(point, limit)
        self.go()

    def finish_pass(self, limit: int = 200) -> None:
        """Let it make a whole pass."""
        self.go()
        self.go_to("pass", limit)

    def kill(self) -> None:
        """End it where it is, with what it has not written down."""
        if self.at != "dead":
            self._killed = True
            self._go.release()
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()
