"""Start and stop GPUs: the reconciler, and nothing else, does it.

A `Controller` reconciles one GPU. It compares the desired state (the leases in the store) with the
observed state (the cloud), lets `lifecycle.decide` name the next step, and performs it. Any number
may run, in any number of processes: a lock with a fencing epoch lets a single controller act at a
time, and its successor sees and finishes what it has left undone.

A cloud cannot check epochs. So a call is made only while the lock is sure to outlive it, by the
local monotonic clock counted from before the lock was last renewed, and only in the pass that holds
the epoch in which it was decided (docs/architecture.md#why-nothing-is-started-twice).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from qwenctl.clouds.base import (
    Accepted,
    Conflict,
    Denied,
    MultiInstanceProvider,
    Observation,
    Provider,
    ProviderError,
    Transient,
    checked,
)
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.agentless import Prober
from qwenctl.core import failures
from qwenctl.core.lifecycle import (
    Call,
    Move,
    NodeView,
    Observe,
    Step,
    Timings,
    View,
    Wait,
    decide,
    failed,
)
from qwenctl.core.observer import NO_OBSERVER, Observer
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Lock, Outcome, Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.lib import http_probe
from qwenctl.lib.text import in_words
from qwenctl.store.store import Store

log = logging.getLogger("qwenctl.control.controller")

LOCK_MARGIN = 5.0
"""Seconds by which the controller lock outlives the longest cloud call."""

_NOT_BEGUN = (Phase.OFF, Phase.STARTING, Phase.FAILED)

_ENDED = (failures.INSTANCE_LOST, failures.START_FAILED, failures.START_TIMEOUT)
"""Failure codes of an instance that is gone."""

JOIN_SECONDS = 2.0
"""Seconds to wait at the end for a probe under way."""

MAX_STEPS = 32
"""Steps in a pass before the lock is renewed; more than any real sequence needs."""


def owner_name() -> str:
    """Return a name for this process that is never used twice."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def timings_of(gpu: GpuConfig, provider: Provider) -> Timings:
    """Return the lifecycle's time limits from the configuration."""
    timing = gpu.timing
    return Timings(
        drain=timing.drain,
        start=timing.start,
        boot=timing.boot,
        load=timing.load,
        call_grace=timing.call_grace,
        heartbeat=4 * timing.heartbeat,
        complaint=1.5 * timing.heartbeat,
        vouch=2 * timing.heartbeat + 2.0,
        node_lost=timing.node_lost,
        retry=timing.retry,
        retry_max=timing.retry_max,
        observe_moving=provider.observe_interval,
    )


class Controller:
    """Reconciles one GPU.

    ==========  ==========================================================================
    call        what it does
    ==========  ==========================================================================
    `step`      makes a pass: as many steps as can be taken now; none if another leads
    `run`       makes passes when something changes or is due, until the event is set
    `wake`      makes `run` begin a pass at once, from any thread
    ==========  ==========================================================================
    """

    def __init__(
        self,
        name: str,
        gpu: GpuConfig,
        store: Store,
        provider: Provider,
        *,
        owner: str | None = None,
        standalone: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        observer: Observer = NO_OBSERVER,
        started: str = "",
    ) -> None:
        """
        Args:
            started: the settings to remember while the instance is on (`qwenctl.config.started`).
            standalone: no proxy runs. So the controller also probes the service itself, since its
                agent cannot report; and an instance that stopped before this controller led counts
                as off, not as failed, so that the next start need not wait.
        """
        self.name = name
        self._gpu = gpu
        self._store = store
        self._provider = provider
        self._owner = owner or owner_name()
        self._standalone = standalone
        self._monotonic = monotonic
        self._observer = observer
        self._started = started
        self._timings = timings_of(gpu, provider)
        self._ttl = provider.call_timeout + LOCK_MARGIN
        self._due = threading.Event()
        self._lock: Lock | None = None
        self._lock_until = 0.0
        self._clock_steps = 0
        self._prober = None if gpu.agent else Prober(name, gpu, store, leads=self.leads)
        self._forget()

    # Running

    def wake(self) -> None:
        """Make `run` begin a pass at once."""
        self._due.set()

    def run(self, stop: threading.Event, *, watch: bool = True) -> None:
        """Reconcile until ``stop`` is set. ``watch=False``: the caller passes changes on by `wake`."""
        watcher = self._store.watch([self.name], lambda *_: self.wake()) if watch else None
        prober = self._start_prober(stop)
        pause = 0.2
        try:
            while not stop.is_set():
                self._due.clear()
                try:
                    delay = self.step()
                    pause = 0.2
                except StoreUnavailable as error:
                    log.warning("%s: %s; nothing is started or stopped meanwhile", self.name, error)
                    delay = pause = min(2.0, pause * 2)
                except (Exception, SystemExit):
                    log.exception("%s: a pass of the reconciler failed; trying again", self.name)
                    delay = pause = min(10.0, pause * 2)
                until = self._monotonic() + delay
                while not stop.is_set() and (left := until - self._monotonic()) > 0:
                    if self._due.wait(min(left, 1.0)):
                        break
        finally:
            if watcher:
                watcher.stop()
            self._give_up_lock()
            if prober and self._prober:
                self._prober.wake()
                prober.join(JOIN_SECONDS)

    def _start_prober(self, stop: threading.Event) -> threading.Thread | None:
        if self._prober is None:
            return None
        thread = threading.Thread(
            target=self._prober.run, args=(stop,), name=f"prober-{self.name}", daemon=True
        )
        thread.start()
        return thread

    def step(self) -> float:
        """Make a pass; return the seconds after which the next is due at the latest.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        asked_at = self._monotonic()
        lock, taken, left = self._store.acquire(self.name, self._owner, self._ttl)
        if lock is None:
            self._lock = None
            return left + 0.02
        if taken or lock != self._lock:
            self._forget()  # another process may have acted since
        led = self.leads()
        self._lock, self._lock_until = lock, asked_at + self._ttl
        if self._prober and not led:
            self._prober.wake()
        return self._take_steps(lock)

    def _take_steps(self, lock: Lock) -> float:
        """Take as many steps as can be taken now; return the seconds until the next pass."""
        for _ in range(MAX_STEPS):
            snapshot = self._store.snapshot(self.name)
            view = self._view(snapshot)
            step = decide(view, self._timings, snapshot.now)
            began = self._monotonic()
            delay = self._perform(lock, snapshot, view, step)
            self._observer.stepped(
                self.name, type(step).__name__.lower(), self._monotonic() - began
            )
            if delay is not None:
                return delay
        return 0.05

    def _perform(self, lock: Lock, snapshot: Snapshot, view: View, step: Step) -> float | None:
        """Perform one step. Return the seconds until the next pass, or None to go on at once."""
        if isinstance(step, Observe):
            self._observe(lock, snapshot)
        elif self._observation.surplus and not self._leaves_alone(snapshot):
            if not self._lock_outlives_call():
                return 0.0
            self._stop_surplus()
        elif isinstance(step, Wait):
            return self._delay(step.seconds, snapshot)
        elif isinstance(step, Move):
            if self._move(lock, snapshot, step) is Outcome.EPOCH:
                return 0.05
        elif not self._lock_outlives_call():
            return 0.0  # renew the lock, then decide again
        else:
            return self._call(lock, snapshot, view, step) or None
        return None

    @contextlib.contextmanager
    def _timed(self, action: str) -> Iterator[None]:
        """Report a call to the cloud, with its outcome, to the observer."""
        began, outcome = self._monotonic(), "ok"
        try:
            yield
        except ProviderError as error:
            outcome = error.code
            raise
        finally:
            try:  # an accepted call must be recorded even if an observer fails
                self._observer.called_cloud(self.name, action, outcome, self._monotonic() - began)
            except Exception:
                log.exception("%s: an observer failed", self.name)

    def _delay(self, seconds: float, snapshot: Snapshot) -> float:
        asked, looked = snapshot.time("look_at"), self._observed_at
        if asked is not None and looked is not None and asked >= looked:
            seconds = min(seconds, self._timings.observe_moving)
        if self._surplus_left:
            seconds = min(seconds, self._timings.observe_slow)
        if snapshot.next_expiry is not None:
            seconds = min(seconds, snapshot.next_expiry - snapshot.now)
        return max(0.005, min(seconds, self._ttl / 3))

    def _give_up_lock(self) -> None:
        if self._lock is not None:
            try:
                self._store.release_lock(self.name, self._lock)
            except StoreUnavailable:
                pass  # the lock expires
            self._lock = None

    def leads(self) -> bool:
        """Return whether the lock is certainly ours; from any thread."""
        return self._lock is not None and self._monotonic() < self._lock_until

    # Looking

    def _forget(self) -> None:
        self._observation = Observation(Observed.UNKNOWN)
        self._observed_at: float | None = None
        self._gone_since: float | None = None
        self._seen_on = False
        self._denied = False
        self._surplus_left = False
        """A surplus instance could not be stopped yet, so the next observation comes sooner."""
        self._probed_seq: int | None = None
        self._leads_since: float | None = None
        self._known_since: float | None = None
        self._connected = self._store.connected

    def _view(self, snapshot: Snapshot) -> View:
        if snapshot.clock_steps != self._clock_steps:
            self._forget()  # its times are of another clock
            self._clock_steps = snapshot.clock_steps
        observed_at = self._observed_at
        if self._should_look(snapshot):
            observed_at = None
        node, heard_at = snapshot.node_view, self._heard_at(snapshot)
        if self._leads_since is None:
            self._leads_since = snapshot.now
        if self._known_since is None or self._connected != self._store.connected:
            self._known_since, self._connected = snapshot.now, self._store.connected
        if node.heartbeat_age is not None:
            # Before we led, perhaps no process received the agent's reports.
            heard = min(node.heartbeat_age, snapshot.now - self._leads_since)
            node = replace(node, heartbeat_age=heard)
        if self._prober and snapshot.time("ready_at") is None:
            # Until then the reports say only that nothing answers, which proves no life.
            node = replace(node, heartbeat_age=None)
        if self._standalone and self._prober is None and self._probe_says_ready(snapshot):
            node = NodeView(hello=True, state="ready")
        since = snapshot.since
        if snapshot.phase in (Phase.BOOTING, Phase.LOADING):
            since = max(since, self._leads_since)  # so the agent gets its full time
        return View(
            phase=snapshot.phase,
            since=since,
            wanted=snapshot.wanted,
            working=snapshot.working,
            unanswered=snapshot.unanswered,
            blocked=bool(snapshot.blocks),
            force_stop="cut" in snapshot.state,
            observed=self._observation.state,
            observed_at=observed_at,
            observed_reason=self._observation.reason,
            gone_since=self._gone_since,
            known_since=self._known_since,
            found_at=snapshot.time("found_at"),
            unheard=self._unheard(snapshot),
            seen_on=self._seen_on,
            asked_at=snapshot.time("look_at"),
            heard_at=heard_at,
            denied=self._denied,
            denied_as=snapshot.state.get("observe_code") or failures.DENIED,
            called_at=snapshot.time("called_at"),
            call_error=snapshot.state.get("call_error", ""),
            node=node,
            failure=snapshot.failure,
            ready_at=snapshot.time("ready_at"),
            found_running=self._gpu.found_running,
            addressed=bool(self._gpu.address or snapshot.address),
            agentless=self._prober is not None,
        )

    def _unheard(self, snapshot: Snapshot) -> bool:
        """Return whether no process receives the agent's reports; a proxy listens for changes.

        The one that listens is the command that this controller works for.
        """
        asks = self._standalone and snapshot.phase in (Phase.DRAINING, Phase.FAILED)
        return asks and self._store.listeners(self.name) <= 1

    def _heard_at(self, snapshot: Snapshot) -> float | None:
        """Return when the instance itself was heard of last, by its agent or an answer."""
        answers = self._prober is None or snapshot.node_view.state == "ready"
        age = snapshot.node_view.heartbeat_age
        return snapshot.now - age if answers and age is not None else None

    def _should_look(self, snapshot: Snapshot) -> bool:
        """Return whether the cloud is to be observed before its time.

        That is so after a request for it (`Store.look`), and while a surplus instance starts.
        """
        asked, looked = snapshot.time("look_at"), self._observed_at
        if looked is None:
            return False
        if self._surplus_left and snapshot.now - looked >= self._timings.observe_slow:
            return True
        if asked is None or asked < looked:
            return False
        return snapshot.now - looked >= self._timings.observe_moving

    def _observe(self, lock: Lock, snapshot: Snapshot) -> None:
        error = code = ""
        self._denied = self._surplus_left = False
        try:
            if isinstance(self._provider, MultiInstanceProvider):
                self._provider.serving(snapshot.state.get("instance_id", ""))
            with self._timed("describe"):
                self._observation = checked(self._provider.describe())
        except ProviderError as problem:
            error, code = str(problem), problem.code
            self._denied = isinstance(problem, Denied)
            self._observation = Observation(Observed.UNKNOWN, reason=error)
            # The failure by `lifecycle.decide` has the same message; the command line shows it once.
            first = self._standalone and self._observed_at is None
            not_begun = first or snapshot.phase in _NOT_BEGUN
            fails_wake = self._denied and snapshot.wanted and not_begun
            extra = {"fails_wake": fails_wake}
            log.warning("%s: cannot look at the instance: %s", self.name, error, extra=extra)
        except (Exception, SystemExit) as broken:  # a third party's provider may raise anything
            error = f"the provider {self._gpu.provider} broke: {in_words(broken)}"
            code = failures.PROVIDER_ERROR
            self._observation = Observation(Observed.UNKNOWN, reason=error)
            log.exception("%s: %s", self.name, error)
        # The snapshot is older than the observation, so its time is safe.
        self._observed_at = snapshot.now
        seen = self._only_serving(self._observation, snapshot)
        if seen.state.gone:
            self._gone_since = self._gone_since or snapshot.now
        elif seen.state is not Observed.UNKNOWN:
            self._gone_since, self._seen_on = None, True
        self._observation = seen
        # Proxies go on forwarding until it is sure that the instance is gone.
        keep = seen.state.gone and snapshot.phase.running
        self._store.record_observation(
            self.name,
            lock,
            state=seen.state.value,
            instance_id=snapshot.state.get("instance_id", "") if keep else seen.instance_id,
            address=self._gpu.address
            or ((snapshot.address or seen.kept_address) if keep else seen.address),
            reason=seen.reason,
            error=error,
            machine=self._gpu.machine,
            code=code,
            started=self._started,
            kept_address=seen.kept_address,
        )

    def _only_serving(self, seen: Observation, snapshot: Snapshot) -> Observation:
        """Read an answer about another instance as the absence of the one whose agent reports.

        Only a start hands over from one of several instances to another, or the one that serves
        would be surplus as soon as the cloud has left it out once.
        """
        # Earlier versions recorded only the id.
        serving = snapshot.state.get("serving", snapshot.state.get("instance_id", ""))
        heard_at = self._heard_at(snapshot)
        speaks = heard_at is not None and snapshot.now - heard_at <= self._timings.heartbeat
        if not (snapshot.phase.running and speaks and serving) or seen.state.gone:
            return seen
        if seen.state is Observed.UNKNOWN or seen.instance_id == serving:
            return seen
        reason = f"{seen.instance_id} is on, and {serving}, whose agent reports, is not shown"
        return Observation(Observed.ABSENT, serving, snapshot.address, reason)

    def _leaves_alone(self, snapshot: Snapshot) -> bool:
        """Return whether an instance found running is to be ignored."""
        return snapshot.phase is Phase.OFF and self._gpu.found_running == "ignore"

    def _stop_surplus(self) -> None:
        """Stop the GPU's instances that run besides the serving instance."""
        assert isinstance(self._provider, MultiInstanceProvider)
        log.warning("%s: %s", self.name, self._observation.reason)
        self._observation = replace(self._observation, surplus=False)  # once for each observation
        try:
            with self._timed("stop_surplus"):
                self._provider.stop_surplus()
        except Conflict as error:
            log.info("%s: %s", self.name, error)
            self._surplus_left = True
        except ProviderError as error:
            log.warning("%s: cannot stop the surplus instance: %s", self.name, error)

    def _probe_says_ready(self, snapshot: Snapshot) -> bool:
        age = snapshot.node_view.heartbeat_age
        if snapshot.node_view.state and age is not None and age <= self._timings.heartbeat:
            return False  # the agent's reports count
        if snapshot.phase not in (Phase.BOOTING, Phase.LOADING) or not snapshot.address:
            return self._probed_seq == snapshot.start_seq and snapshot.phase is not Phase.OFF
        path = self._gpu.service[0].readiness.path if self._gpu.service else "/"
        answer, _ = http_probe.probe(snapshot.address, self._gpu.port, path, timeout=1.0)
        if answer is http_probe.ProbeResult.READY:
            self._probed_seq = snapshot.start_seq
        elif answer is not http_probe.ProbeResult.ERROR:
            return False  # even if it was ready before
        return self._probed_seq == snapshot.start_seq

    # Acting

    def _lock_outlives_call(self) -> bool:
        """Return whether the lock certainly outlives a call that is made now."""
        # The clock is read last, so that a pause before it counts.
        return self._provider.call_timeout < self._lock_until - self._monotonic()

    def _ended_before(self, snapshot: Snapshot, move: Move) -> bool:
        """Return whether the failure is that of an instance gone before we led."""
        begun = max(snapshot.since, snapshot.time("called_at") or 0.0)
        return (
            move.to is Phase.FAILED
            and move.cause in _ENDED
            and self._observation.state.gone
            and begun < (self._leads_since or 0.0)
        )

    def _move(self, lock: Lock, snapshot: Snapshot, move: Move) -> Outcome:
        if self._standalone and self._ended_before(snapshot, move):
            move = Move(Phase.OFF, "stopped_outside")
        outcome = self._store.transition(
            self.name,
            lock,
            snapshot.phase,
            move,
            drain=self._timings.drain,
            idle_timeout=self._gpu.idle_timeout,
            started=self._started,
        )
        if outcome is Outcome.OK:
            again = (
                move.cause == failures.SPOT_INTERRUPTION
                and move.failure is not None
                and move.failure.attempts > 1
            )
            if again and isinstance(self._provider, MultiInstanceProvider):
                self._provider.avoid()
            if self._prober:
                self._prober.wake()
            log.info(
                "%s: %s -> %s (%s)%s",
                self.name,
                snapshot.phase.value,
                move.to.value,
                move.cause,
                f": {move.failure.message}" if move.failure and move.to is Phase.FAILED else "",
            )
        return outcome

    def _call(self, lock: Lock, snapshot: Snapshot, view: View, call: Call) -> float:
        """Make the call; return the seconds until the next step, or 0 to go on at once."""
        accepted, problem, code = Accepted(), "", ""
        seen_at, self._observed_at = self._observed_at, None  # older observations are void
        try:
            act = self._provider.start if call.verb == "start" else self._provider.stop
            with self._timed(call.verb):
                accepted = act()
        except Conflict as error:
            log.info("%s: %s: %s", self.name, call.verb, error)
            return self._timings.observe_moving
        except Transient as error:
            problem, code = str(error), error.code  # perhaps accepted: the next look decides
        except ProviderError as error:
            problem, code = str(error), error.code
            if call.verb == "start":
                move = failed(
                    view, self._timings, snapshot.now, error.code, problem, instance_is_bad=False
                )
                self._move(lock, snapshot, move)
                return 0.0
        self._store.record_call(
            self.name,
            lock,
            snapshot.phase,
            call.verb,
            request_id=accepted.request_id,
            error=problem,
            note=accepted.note,
            code=code,
        )
        if not problem:
            self._observed_at = seen_at  # `decide` treats it as void, and gives the cloud its grace
        level = logging.WARNING if problem else logging.INFO
        words = problem or "; ".join(filter(None, ("accepted", accepted.note)))
        log.log(level, "%s: %s call %s", self.name, call.verb, words)
        return 0.0
