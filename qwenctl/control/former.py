"""Wind down what was started by settings that the config file no longer has.

The store remembers by which settings a GPU's instance was started (`qwenctl.config.started`). If the
settings of now name another instance, the controller first blocks the GPU, drains it and stops the
instance by the settings that it was started by. Only then does it act by those of now: two instances
of a GPU are never on at once. A GPU that the file no longer has is wound down in the same way.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

from qwenctl.clouds.base import Provider, ProviderError, Throttled, Transient
from qwenctl.clouds.claimed import claiming
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.started import Started, of_others
from qwenctl.control.controller import Controller, owner_name
from qwenctl.control.left_on import removed
from qwenctl.core import failures, leases
from qwenctl.core.lifecycle import Move
from qwenctl.core.observer import NO_OBSERVER, Observer
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Lock, Outcome, Snapshot
from qwenctl.core.words import overdue_boot, overdue_words
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.text import escape_control, in_words
from qwenctl.store.deployment_id import cached_id
from qwenctl.store.store import Store

log = logging.getLogger("qwenctl.control.former")

ACTOR = "settings"
"""Who writes the block, in the history."""

LOOK_SECONDS = 30.0
"""How often GPUs are looked for that the settings no longer have."""

STUCK_SECONDS = 15.0
"""Seconds between two attempts where the former settings cannot be used."""

ANSWER_SECONDS = 60.0
"""How long a cloud may fail to answer whether the settings of now name the same instance."""


OVERDUE = 60.0
"""Seconds from running to the agent's hello, or half of `timing.boot`, after which it is told."""


class ConfiguredController(Controller):
    """A controller that first winds down what was started by other settings."""

    def __init__(
        self,
        name: str,
        gpu: GpuConfig,
        store: Store,
        provider: Provider,
        *,
        config: Config,
        **options: Any,
    ) -> None:
        self._own = Started.of(gpu, config)
        super().__init__(name, gpu, store, provider, started=self._own.encode(), **options)
        self._config = config
        self._former: tuple[str, Controller] | None = None
        """The controller by the former settings, and their text."""
        self._same: dict[str, bool] = {}
        """Whether former settings name the instance of now, by another way to it."""
        self._asked_since: float | None = None
        """Since when the cloud has not answered that."""
        self._elsewhere = of_others(config, name)
        self._named = False

    def _tell_overdue(self, lock: Lock, snapshot: Snapshot) -> None:
        """Record that nothing is heard from the agent of a boot for longer than usual."""
        if snapshot.phase is not Phase.BOOTING or not self._gpu.agent or overdue_boot(snapshot):
            return
        if self._leads_since is None:
            return
        # While nobody led, the agent could reach nobody.
        seconds = snapshot.now - max(snapshot.since, self._leads_since)
        if seconds >= min(OVERDUE, self._timings.boot / 2):
            urls = self._config.node_urls
            text = overdue_words(seconds, " ".join(urls))
            self._store.overdue(self.name, lock, snapshot.since, urls, text)
            log.warning("%s: %s", self.name, text)

    def _move(self, lock: Lock, snapshot: Snapshot, move: Move) -> Outcome:
        failure, told = move.failure, "it is told to reach"
        silent = failure and failure.code == failures.AGENT_SILENT
        # A failure is carried along by later moves, and has the URLs then.
        if failure and silent and move.to is Phase.FAILED and told not in failure.message:
            text = f"{failure.message}; {told} {' or '.join(self._config.node_urls)}"
            move = replace(move, failure=replace(failure, message=text))
        return super()._move(lock, snapshot, move)

    def _take_steps(self, lock: Lock) -> float:
        if not self._named:
            self._store.remember_gpu(self.name)
            self._named = True
        snapshot = self._store.snapshot(self.name)
        text = snapshot.state.get("started", "")
        try:
            former = self._other_than_own(snapshot, text)
        except (Throttled, Transient) as error:
            log.info("%s: it is not known yet whether its settings changed: %s", self.name, error)
            return self._timings.observe_moving
        if former is None:
            self._former = None
            self._tell_overdue(lock, snapshot)
            self._lift(snapshot)
            return super()._take_steps(lock)
        return self._wind_down(snapshot, text, former)

    def _other_than_own(self, snapshot: Snapshot, text: str) -> Started | None:
        """Return the settings of an instance that may be on and that ours do not name.

        Raises:
            Throttled, Transient: see `_is_the_same`.
        """
        if text in ("", self._started) or snapshot.phase is Phase.OFF:
            return None
        former = Started.read(text).without(self._elsewhere)
        if former is None or former.identities <= self._own.identities:
            return None
        serving = snapshot.state.get("instance_id", "")
        if snapshot.phase.running and (serving in former.common(self._own)):
            return None  # only the list of fallbacks was changed
        if text not in self._same:
            self._same = {text: self._is_the_same(former)}
        return None if self._same[text] else former

    def _is_the_same(self, former: Started) -> bool:
        """Return whether our settings lead to the same instance by another profile or endpoint.

        Raises:
            Throttled, Transient: the cloud does not answer; for `ANSWER_SECONDS` at most.
        """
        if len(former.instances) != 1 or former.instances != self._own.instances:
            return False
        if self._asked_since is None:
            self._asked_since = self._monotonic()
        try:
            found = self._provider.describe().state not in (Observed.ABSENT, Observed.UNKNOWN)
        except Exception as error:
            passes = isinstance(error, (Throttled, Transient))
            if passes and self._monotonic() - self._asked_since < ANSWER_SECONDS:
                raise
            log.debug("%s: not found by the settings of now: %s", self.name, in_words(error))
            found = False
        self._asked_since = None
        return found

    def _wind_down(self, snapshot: Snapshot, text: str, former: Started) -> float:
        """Make a pass by the former settings; return the seconds until the next is due."""
        reason = self._reason(former)
        try:
            controller = self._controller_of(text, former)
        except (ConfigError, ProviderError) as error:
            self._hold(snapshot, former, f"{reason}, but cannot be: {error}; {_BY_HAND}")
            return STUCK_SECONDS
        except Exception as broken:  # a third party's provider may raise anything
            self._hold(snapshot, former, f"{reason}, but cannot be: {in_words(broken)}; {_BY_HAND}")
            return STUCK_SECONDS
        if snapshot.state.get("observe_code") == failures.CLAIMED:
            reason = (
                f"the settings name {self._own.words} now; {former.words}, which was started before, "
                "belongs to another deployment and is left alone; `qwenctl unblock --forget` lets the "
                "settings of now count"
            )
        self._hold(snapshot, former, reason)
        delay = controller.step()
        self._lock_until = min(self._lock_until, controller._lock_until)
        over = "started" not in self._store.snapshot(self.name).state
        return 0.0 if over else delay

    def _reason(self, former: Started) -> str:
        return (
            f"the settings name {self._own.words} now; {former.words}, which was started before, is "
            "stopped first"
        )

    def _controller_of(self, text: str, former: Started) -> Controller:
        if self._former is None or self._former[0] != text:
            controller = Controller(
                self.name,
                former.gpu(),
                self._store,
                _provider_of(former, self.name, self._store, self._config),
                owner=self._owner,
                standalone=self._standalone,
                monotonic=self._monotonic,
                observer=self._observer,
                started=text,
            )
            log.warning("%s: %s", self.name, self._reason(former))
            self._former = text, controller
        return self._former[1]

    def _hold(self, snapshot: Snapshot, former: Started, reason: str) -> None:
        """Block the GPU, which drains it and leaves its running work alone."""
        name, reason = leases.former(former.name), escape_control(reason)
        if not any(block.name == name and block.reason == reason for block in snapshot.blocks):
            self._store.block(self.name, name, None, reason=reason, actor=ACTOR)

    def _lift(self, snapshot: Snapshot) -> None:
        for block in snapshot.blocks:
            if block.kind == leases.FORMER:
                self._store.unblock(self.name, block.name, actor=ACTOR)


_BY_HAND = (
    "stop it in the cloud's console if it is on, then `qwenctl unblock --forget` lets the settings "
    "of now count"
)


class RemovedGpu(Controller):
    """Winds down a GPU that the settings no longer have, then ends."""

    def __init__(
        self, name: str, former: Started, store: Store, config: Config, **options: Any
    ) -> None:
        """Raises:
        ConfigError: see `Started.provider`.
        """
        provider = _provider_of(former, name, store, config)
        super().__init__(name, former.gpu(), store, provider, started=former.encode(), **options)
        self._former = former
        self._done = threading.Event()

    def run(self, stop: threading.Event, *, watch: bool = True) -> None:
        """Reconcile until the instance is off or ``stop`` is set."""
        super().run(_Either(stop, self._done), watch=watch)

    def _start_prober(self, stop: threading.Event) -> None:  # noqa: ARG002
        return None  # nobody uses it any more

    def _take_steps(self, lock: Lock) -> float:
        snapshot = self._store.snapshot(self.name)
        if "started" in snapshot.state:
            name = leases.former(self._former.name)
            if not any(block.name == name for block in snapshot.blocks):
                reason = escape_control(removed_words(self._former))
                self._store.block(self.name, name, None, reason=reason, actor=ACTOR)
            delay = super()._take_steps(lock)
            snapshot = self._store.snapshot(self.name)
            if "started" in snapshot.state:
                return delay
        for block in snapshot.blocks:
            if block.kind == leases.FORMER:
                self._store.unblock(self.name, block.name, actor=ACTOR)
        self._store.release(self.name, actor=ACTOR, reason="the settings no longer have it")
        self._store.forget_gpu(self.name)
        self._done.set()
        return 0.0


def _provider_of(former: Started, name: str, store: Store, config: Config) -> Provider:
    """Make the provider of former settings, which leaves instances of other deployments alone.

    Raises:
        ConfigError: see `Started.provider`.
    """
    owner = cached_id(store, config.state_path)
    return claiming(former.provider(name, config), f"{config.deployment}/{name}", owner)


def removed_words(former: Started) -> str:
    """Return what happens to the instance of a GPU that the settings no longer have."""
    return f"the settings no longer have this GPU; {former.words}, which was started for it, is stopped"


class _Either(threading.Event):
    """An event that is set as soon as one of two others is."""

    def __init__(self, *others: threading.Event) -> None:
        super().__init__()
        self._others = others

    def is_set(self) -> bool:
        return any(other.is_set() for other in self._others)


class RemovedGpus:
    """Finds the GPUs that the settings no longer have, and winds each down in a thread."""

    def __init__(
        self, config: Config, store: Store, *, owner: str = "", observer: Observer = NO_OBSERVER
    ) -> None:
        self._config, self._store, self._observer = config, store, observer
        self._owner = owner or owner_name()
        self._threads: dict[str, threading.Thread] = {}
        self._troubles: dict[str, str] = {}
        self.gpus: dict[str, GpuConfig] = {}
        """Those that are being wound down: their agents still report."""

    def run(self, stop: threading.Event) -> None:
        """Look for them until ``stop`` is set."""
        while not stop.is_set():
            try:
                self.step(stop)
                delay = LOOK_SECONDS
            except StoreUnavailable as error:
                log.debug("GPUs removed from the settings are looked for again: %s", error)
                delay = 2.0
            except Exception:
                log.exception("GPUs removed from the settings cannot be looked for; trying again")
                delay = LOOK_SECONDS
            stop.wait(delay)
        for thread in self._threads.values():
            thread.join(2.0)

    def step(self, stop: threading.Event) -> None:
        """Begin to wind down each that is not yet being wound down."""
        for name in [name for name, thread in self._threads.items() if not thread.is_alive()]:
            del self._threads[name]
            self.gpus.pop(name, None)
        for name, (_, former) in removed(self._config, self._store).items():
            if name not in self._threads:
                self._begin(name, former, stop)

    def _begin(self, name: str, former: Started, stop: threading.Event) -> None:
        try:
            controller = RemovedGpu(
                name,
                former,
                self._store,
                self._config,
                owner=self._owner,
                observer=self._observer,
            )
            self.gpus[name] = former.gpu()
        except Exception as error:
            trouble = str(error) if isinstance(error, ConfigError) else in_words(error)
            if self._troubles.get(name) != trouble:
                log.error(
                    "%s: the settings no longer have it, and it cannot be stopped: %s",
                    name,
                    trouble,
                )
            self._troubles[name] = trouble
            return
        log.warning("%s: %s", name, removed_words(former))
        thread = threading.Thread(
            target=controller.run, args=(stop,), name=f"removed-{name}", daemon=True
        )
        self._threads[name] = thread
        thread.start()
