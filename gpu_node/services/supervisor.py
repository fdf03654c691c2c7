"""Supervise a service: start it, probe it, restart it after a crash, stop it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import requests

from gpu_node.machine.nvidia import GpuView, GpuWatch
from gpu_node.services.awaited import Lack, lack_in_output, lack_of
from gpu_node.services.evidence import Evidence, UnansweredProbes
from gpu_node.services.inference import InferenceFailed, infer_once
from gpu_node.services.log_lines import secrets_of
from gpu_node.services.probe import GpuLoad, Work, probe_active, probe_ready, probe_work
from gpu_node.services.progress import Tracker
from gpu_node.services.runtime import Runtime, ServiceRun, StartFailed, service_environment
from gpu_node.services.weights import WeightsWatch
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Progress, Service, ServiceState

log = logging.getLogger(__name__)

FIRST_PROBE = 0.05
"""Seconds between the first probes; they grow to the service's own interval."""

UNANSWERED_PROBE = 0.05
"""The longest pause while nothing answers: most WebUIs listen only when they are ready, and a probe
of a closed port costs next to nothing."""

FIRST_RESTART, LONGEST_RESTART = 0.5, 30.0
"""Seconds from a crash to the next start, or from a failed first inference to the next; doubles
with each further one."""

STEADY = 60.0
"""Seconds ready after which a crash counts as the first in a row again."""

LONGEST_WAIT = 5.0
"""Seconds between two starts while the machine lacks what the service needs."""

SILENT_PROBES = 3
"""Activity probes without an answer until a service counts as doing nothing."""

UNREADY_PROBES = 3
"""Readiness probes in a row that a ready service may fail."""

ABSENT = (ProbeResult.REFUSED, ProbeResult.UNREACHABLE)
"""Results of a probe of a service that is not there, and so not at work."""

State = Literal["starting", "ready", "crashed", "failed", "stopped"]


class Listener(Protocol):
    """Takes the events of a service. Called from the service's threads."""

    def changed(self) -> None:
        """Its state or activity has changed."""

    def progressed(self, service: str, progress: Progress) -> None:
        """It has come closer to ready."""

    def logged(self, service: str, text: str) -> None:
        """It has written a line."""


class Supervisor:
    """Keeps one service running in a thread of its own.

    ========  ===========================================================================
    state     what the supervisor does
    ========  ===========================================================================
    starting  runs it and probes until it is ready, a first inference included; waits for what
              the machine still lacks, such as the GPU's driver
    ready     asks it for running generations each heartbeat
    crashed   waits a little, then starts it again
    failed    nothing more: it crashed more often in a row than ``max_restarts``, or cannot be
              started as it is described
    stopped   nothing more: `stop` was called and nothing of it is left
    ========  ===========================================================================

    Args:
        service: what to run.
        runtime: runs it.
        listener: takes each change.
        heartbeat: seconds between two activity probes.
        after: supervisors whose services must be gone first (they hold the name or the port).
        gpus: figures of the GPUs.
        clock: the monotonic clock by which claims of work are doubted.
        patience: seconds to wait for what the machine lacks.
    """

    def __init__(
        self,
        service: Service,
        runtime: Runtime,
        listener: Listener,
        heartbeat: float,
        after: Sequence[Supervisor] = (),
        gpus: GpuWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 1200.0,
    ) -> None:
        self.service = service
        self._runtime = runtime
        self._listener = listener
        self._heartbeat = heartbeat
        self._after = after
        self._gpus = gpus or GpuWatch()
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._left = False
        self._current: ServiceRun | None = None
        self._state: State = "starting"
        self._error = ""
        self._restarts = 0
        self._active = 0
        self._doubt = ""
        self._silence = ""
        self._last_lines: deque[str] = deque(maxlen=12)
        self._tracker = Tracker()
        self._weights = WeightsWatch(service.weights, self._weights_read)
        self._thread = threading.Thread(target=self._run, name=service.name, daemon=True)
        self._thread.start()

    @property
    def view(self) -> ServiceState:
        """The service's part of a report."""
        with self._lock:
            return ServiceState(
                name=self.service.name,
                state=self._state,
                port=self.service.port,
                restarts=self._restarts,
                error=self._error[:2000],
                detail=self._current.detail[:300] if self._current else "",
                doubt=(self._doubt or self._silence)[:300],
            )

    @property
    def active(self) -> int:
        """Generations running at the last look."""
        return self._active

    @property
    def doubted(self) -> bool:
        """Whether it claims work that is not believed."""
        return bool(self._doubt)

    @property
    def over(self) -> bool:
        """Whether it is not run any more: given up, or asked to stop."""
        return self._stop.is_set() or self._state in ("failed", "stopped")

    def takes(self, service: Service) -> bool:
        """Take a changed description if it needs no other process or container; return whether."""
        with self._lock:
            if _what_runs(service) != _what_runs(self.service):
                return False
            self.service = service
            return True

    def stop(self) -> None:
        """Stop the service; returns at once, `join` waits."""
        self._weights.stop()
        with self._lock:
            self._stop.set()
            run = self._current
        if run is not None:
            run.stop(self.service.stop_timeout)

    @property
    def can_be_left(self) -> bool:
        """Whether the service can run without this agent."""
        return self._runtime.outlives_agent

    def leave(self) -> None:
        """Leave the service to the next agent, if it can be left; returns at once, `join` waits."""
        if not self._runtime.outlives_agent:
            return
        with self._lock:
            self._left = True
            self._stop.set()
            if self._current is not None:
                self._current.detach()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing of the service is left; return whether that is so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # `gpu_node.services.runtime.Output`

    def line(self, text: str) -> None:
        self._last_lines.append(text)
        self._listener.logged(self.service.name, text)

    def progress(self, progress: Progress) -> None:
        if self._state == "starting":
            self._listener.progressed(self.service.name, self._tracker.report(progress))

    def _weights_read(self, progress: Progress) -> None:
        run = self._current
        if self._state == "starting" and run is not None and run.up:
            self._listener.progressed(self.service.name, self._tracker.estimate(progress))

    def _run(self) -> None:
        self._weights.start()
        try:
            self._run_until_stopped()
        finally:
            self._weights.stop()

    def _run_until_stopped(self) -> None:
        for earlier in self._after:
            earlier.join()
        self._after = ()
        crashes = 0
        waiting = _Waiting(self._patience)
        while not self._stop.is_set():
            self._last_lines.clear()
            ready_at: float | None = None
            final = False
            lack = None
            try:
                how, ready_at = self._run_once()
                lack = lack_in_output("\n".join(self._last_lines)) if ready_at is None else None
            except StartFailed as reason:
                how, final = str(reason), reason.final
                lack = None if final else lack_of(how)
            except Exception as fault:  # of the agent, or of the runtime
                log.exception("%s: the agent's own fault", self.service.name)
                how = f"{type(fault).__name__}: {fault}"
            if self._stop.is_set():
                break
            if ready_at is not None and time.monotonic() - ready_at >= STEADY:
                crashes = 0
            error = f"{self.service.name}: {how}"
            if last := "\n".join(self._last_lines):
                error += "\n" + last[-1500:]
            if pause := waiting.pause(lack, self.service.max_restarts):
                self._await(waiting.text, error, pause)
                continue
            crashes += 1
            if final or crashes > self.service.max_restarts:
                self._become("failed", error)
                return
            self._become("crashed", error)
            if self._stop.wait(min(FIRST_RESTART * 2 ** (crashes - 1), LONGEST_RESTART)):
                break
            with self._lock:
                self._restarts += 1
            self._become("starting", error)
        self._become("stopped", "")

    def _await(self, text: str, error: str, pause: float) -> None:
        """Say what the machine lacks, and wait a moment. That is no crash of the service."""
        self._become("starting", error)
        self._tracker = Tracker()
        self.progress(Progress(phase="start", text=f"{self.service.name}: {text}"[:400]))
        self._stop.wait(pause)

    def _run_once(self) -> tuple[str, float | None]:
        """Run the service until it ends; return how it ended, and when it became ready, if it did."""
        self._tracker = Tracker()
        run = self._runtime.start(self.service, self)
        with self._lock:
            self._current = run
            stopped_meanwhile = self._stop.is_set()
        if stopped_meanwhile and self._left:
            run.detach()
        elif stopped_meanwhile:
            run.stop(self.service.stop_timeout)
        self.progress(Progress(phase="start", text=f"starting {self.service.name}"))
        ended = threading.Event()
        ready_at: list[float] = []
        prober = threading.Thread(target=self._probe, args=(run, ended, ready_at), daemon=True)
        prober.start()
        try:
            how = run.wait()
        finally:
            ended.set()
            # A probe under way must not call a service ready that has just ended.
            prober.join()
            with self._lock:
                self._current = None
                self._active, self._doubt, self._silence = 0, "", ""
        return how, ready_at[0] if ready_at else None

    def _probe(self, run: ServiceRun, ended: threading.Event, ready_at: list[float]) -> None:
        with requests.Session() as http:
            http.trust_env = False  # a proxy variable is not meant for loopback
            while not ended.is_set():
                try:
                    self._wait_until_ready(run, http, ended)
                    if ended.is_set() or self._stop.is_set():
                        return
                    ready_at.append(time.monotonic())
                    self._weights.stop()
                    self._become("ready", "")
                    self._watch_activity(run, http, ended)
                except Exception:  # without probes a service would keep its state for ever
                    log.exception("%s: the agent's own fault", self.service.name)
                    ended.wait(FIRST_RESTART)

    def _wait_until_ready(
        self, run: ServiceRun, http: requests.Session, ended: threading.Event
    ) -> None:
        pause = FIRST_PROBE
        tries = 0
        while not ended.is_set() and not self._stop.is_set():
            readiness = self.service.readiness
            result = probe_ready(run.base_url, readiness) if run.up else ProbeResult.REFUSED
            if result is ProbeResult.READY:
                if self._warmed_up(run, http, ended, tries):
                    return
                tries += 1
            longest = UNANSWERED_PROBE if result in ABSENT else readiness.interval
            ended.wait(min(pause, longest))
            pause = min(pause * 1.2, readiness.interval)

    def _watch_activity(
        self, run: ServiceRun, http: requests.Session, ended: threading.Event
    ) -> None:
        """Count the generations of a ready service, until it ends or is not ready any more."""
        container = self.service.container
        names = container.gpus if container else ("all",)
        load = GpuLoad(self.service.activity, names)
        evidence, silence = Evidence(self._clock), UnansweredProbes(self._clock)
        work, silent, unready = Work(known=False), 0, 0
        while not ended.wait(self._heartbeat):
            activity = self.service.activity
            if activity != load.activity:
                load = GpuLoad(activity, names)
            readiness = self.service.readiness
            if activity.path:
                told = probe_work(http, run.base_url, activity, readiness.timeout)
                silent = 0 if told else silent + 1
                if told or silent >= SILENT_PROBES:
                    work = told or Work(known=False)
            asked = activity.gpu_percent or evidence.needs_gpus
            view = self._gpus.look() if asked else GpuView((), "", None)
            by_load = load.look(view) if activity.gpu_percent else 0
            self._count(evidence.judge(work, by_load, view, names), evidence.doubt)
            # A service that is slow to answer may be at work; a service that refuses is not.
            found = probe_ready(run.base_url, readiness)
            self._note_silence(silence.look(found, readiness.path, self._active))
            away = found is ProbeResult.ERROR or found in ABSENT
            unready = unready + 1 if away and not self._active else 0
            if unready >= UNREADY_PROBES:
                what = "does not answer any more" if found in ABSENT else "answers with an error"
                self._become("starting", f"{self.service.name}: GET {readiness.path} {what}")
                return

    def _warmed_up(
        self, run: ServiceRun, http: requests.Session, ended: threading.Event, tries: int
    ) -> bool:
        """Have the service infer once, if its readiness needs that; return whether it is ready.

        After a failure, wait until it may be tried again.
        """
        service = self.service
        if not service.readiness.inference:
            return True
        activity = service.activity
        if (
            run.taken_up
            and tries == 0
            and activity.path
            and probe_active(http, run.base_url, activity, service.readiness.timeout)
        ):
            return True  # it generates since an earlier agent; an inference would have to queue
        self.progress(Progress(phase="warm-up", text=f"{service.name}: a first inference"))
        secrets: tuple[str, ...] = ()
        try:
            env = service_environment(service)
            secrets = secrets_of(service, env)
            infer_once(
                run.base_url,
                service.readiness,
                api_key=env.get("VLLM_API_KEY", ""),
                unwanted=lambda: ended.is_set() or self._stop.is_set(),
            )
            return True
        except (InferenceFailed, StartFailed) as reason:
            why = redacted(str(reason), secrets)
        if ended.is_set() or self._stop.is_set():
            return False  # it was given up
        pause = min(FIRST_RESTART * 2 ** min(tries, 10), LONGEST_RESTART)
        text = f"{service.name}: the first inference failed: {why}"
        self.progress(Progress(phase="warm-up", text=f"{text[:370]}; again in {pause:g} s"))
        ended.wait(pause)
        return False

    def _count(self, active: int, doubt: str) -> None:
        """Note the number of generations; report the first and the last."""
        if doubt and not self._doubt:
            log.warning("%s: %s", self.service.name, doubt)
        before, self._active, self._doubt = self._active, active, doubt
        if (before == 0) != (active == 0):
            self._listener.changed()

    def _note_silence(self, text: str) -> None:
        if text and not self._silence:
            log.warning("%s: %s", self.service.name, text)
        self._silence = text

    def _become(self, state: State, error: str) -> None:
        with self._lock:
            self._state, self._error = state, error
        self._listener.changed()


class _Waiting:
    """Decides how long a service waits for what the machine lacks.

    Args:
        patience: seconds, from the first thing on.
        clock: monotonic, in seconds.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = ""
        self._clock = clock
        self._patience = patience
        self._lack: Lack | None = None
        self._since = 0.0
        self._tries = 0

    def pause(self, lack: Lack | None, max_restarts: int) -> float:
        """Return seconds until the next attempt; 0: do not wait, but count the failure."""
        now = self._clock()
        if lack is None or self._lack is None:
            self._since, self._tries = now, 0
        self._lack = lack
        if lack is None or not lack.comes or (lack.optional and not max_restarts):
            return 0.0
        waited = now - self._since
        if waited >= min(self._patience, lack.longest):
            return 0.0
        self._tries += 1
        self.text = f"waiting for {lack.name}" + (f", for {waited:.0f} s now" if waited > 5 else "")
        return float(min(FIRST_RESTART * 2 ** min(self._tries - 1, 10), LONGEST_WAIT))


def _what_runs(service: Service) -> dict[str, Any]:
    """Return the service without the fields that only the agent reads."""
    aside = {"readiness", "activity", "stop_timeout", "max_restarts", "weights"}
    return service.model_dump(exclude={**dict.fromkeys(aside, True), "container": {"pull"}})
