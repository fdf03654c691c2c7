"""One service from its start to its end: ready, crashed, started again, given up, stopped."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol

import requests

from gpu_node.probe import probe_active, probe_ready
from gpu_node.runtime import Instance, Runtime, StartFailed
from qwenctl.wire import Progress, Service, ServiceState

__all__ = ["Listener", "Supervisor"]

FIRST_PROBE = 0.05
"""Seconds between the first probes; they grow to the service's own interval."""

FIRST_RESTART, LONGEST_RESTART = 0.5, 30.0
"""Seconds from a crash to the next start; doubles with each further crash."""

STEADY = 60.0
"""Seconds ready after which a crash is the first one of a row again."""

SILENT_PROBES = 3
"""Activity probes without an answer until a service counts as doing nothing."""

State = Literal["starting", "ready", "crashed", "failed", "stopped"]


class Listener(Protocol):
    """Who is told what happens to a service. Called from the service's threads."""

    def changed(self) -> None:
        """Its state is another one."""

    def progressed(self, progress: Progress) -> None:
        """It is further on its way to ready."""

    def logged(self, service: str, text: str) -> None:
        """It has written a line."""


class Supervisor:
    """Keeps one service running in a thread of its own.

    ========  ===========================================================================
    state     what the supervisor does
    ========  ===========================================================================
    starting  runs it and probes until it is ready
    ready     asks it for running generations each heartbeat
    crashed   waits a little, then starts it again
    failed    nothing more: it crashed more often in a row than ``max_restarts``
    stopped   nothing more: `stop` was called and nothing of it is left
    ========  ===========================================================================

    Args:
        service: what to run.
        runtime: runs it.
        listener: is told of each change.
        heartbeat: seconds between two activity probes.
        after: supervisors whose services must be gone first (they hold the name or the port).
    """

    def __init__(
        self,
        service: Service,
        runtime: Runtime,
        listener: Listener,
        heartbeat: float,
        after: Sequence[Supervisor] = (),
    ) -> None:
        self.service = service
        self._runtime = runtime
        self._listener = listener
        self._heartbeat = heartbeat
        self._after = after
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._instance: Instance | None = None
        self._state: State = "starting"
        self._error = ""
        self._restarts = 0
        self._active = 0
        self._last_lines: deque[str] = deque(maxlen=12)
        self._thread = threading.Thread(target=self._run, name=service.name, daemon=True)
        self._thread.start()

    @property
    def view(self) -> ServiceState:
        """The service as the proxy is told of it."""
        with self._lock:
            return ServiceState(
                name=self.service.name,
                state=self._state,
                port=self.service.port,
                restarts=self._restarts,
                error=self._error[:2000],
            )

    @property
    def active(self) -> int:
        """Generations running, as the service said last."""
        return self._active

    def stop(self) -> None:
        """Stop the service; returns at once, `join` waits."""
        with self._lock:
            self._stop.set()
            instance = self._instance
        if instance is not None:
            instance.stop(self.service.stop_timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing of the service is left; whether that is so now."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # Output of the runtime; also the listener's two other calls, with our name.

    def line(self, text: str) -> None:
        self._last_lines.append(text)
        self._listener.logged(self.service.name, text)

    def progress(self, progress: Progress) -> None:
        if self._state == "starting":
            self._listener.progressed(progress)

    def _run(self) -> None:
        for earlier in self._after:
            earlier.join()
        self._after = ()
        crashes = 0
        while not self._stop.is_set():
            self._last_lines.clear()
            ready_at: float | None = None
            try:
                how, ready_at = self._run_once()
            except StartFailed as reason:
                how = str(reason)
            if self._stop.is_set():
                break
            if ready_at is not None and time.monotonic() - ready_at >= STEADY:
                crashes = 0
            crashes += 1
            error = f"{self.service.name}: {how}"
            if last := "\n".join(self._last_lines):
                error += "\n" + last[-1500:]
            if crashes > self.service.max_restarts:
                self._become("failed", error)
                return
            self._become("crashed", error)
            if self._stop.wait(min(FIRST_RESTART * 2 ** (crashes - 1), LONGEST_RESTART)):
                break
            with self._lock:
                self._restarts += 1
            self._become("starting", error)
        self._become("stopped", "")

    def _run_once(self) -> tuple[str, float | None]:
        """Run the service until it ends: how it ended, and since when it was ready, if it was."""
        instance = self._runtime.start(self.service, self)
        with self._lock:
            self._instance = instance
            stopped_meanwhile = self._stop.is_set()
        if stopped_meanwhile:
            instance.stop(self.service.stop_timeout)
        self._listener.progressed(Progress(phase="start", text=f"starting {self.service.name}"))
        ended = threading.Event()
        ready_at: list[float] = []
        prober = threading.Thread(target=self._probe, args=(instance, ended, ready_at), daemon=True)
        prober.start()
        how = instance.wait()
        ended.set()
        # A probe under way must not call a service ready that has just ended.
        prober.join()
        with self._lock:
            self._instance = None
            self._active = 0
        return how, ready_at[0] if ready_at else None

    def _probe(self, instance: Instance, ended: threading.Event, ready_at: list[float]) -> None:
        readiness, activity = self.service.readiness, self.service.activity
        with requests.Session() as http:
            http.trust_env = False  # a proxy variable is not meant for loopback
            pause = min(FIRST_PROBE, readiness.interval)
            while not probe_ready(http, instance.base_url, readiness):
                if ended.wait(pause):
                    return
                pause = min(pause * 1.2, readiness.interval)
            if ended.is_set() or self._stop.is_set():
                return
            ready_at.append(time.monotonic())
            self._become("ready", "")
            silent = 0
            while activity.path and not ended.wait(self._heartbeat):
                active = probe_active(http, instance.base_url, activity, readiness.timeout)
                silent = silent + 1 if active is None else 0
                if active is not None or silent >= SILENT_PROBES:
                    self._count(active or 0)

    def _count(self, active: int) -> None:
        """Note the number of generations; the first and the last one are worth a report."""
        before, self._active = self._active, active
        if (before == 0) != (active == 0):
            self._listener.changed()

    def _become(self, state: State, error: str) -> None:
        with self._lock:
            self._state, self._error = state, error
        self._listener.changed()
