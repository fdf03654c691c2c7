"""Probe the WebUI of a GPU without an agent (``agent = false``), and report for it.

The WebUI starts with the instance. The leading process probes it over HTTP and stores the result as
an agent's report, so that all other code treats both alike.

==============  ===================================  ========================================
the WebUI       before it was ready in this boot     afterwards
==============  ===================================  ========================================
below 400       ready                                ready, each heartbeat
400 and above   loading                              loading, after two such answers
refuses         loading                              loading, once; then silence
times out       loading                              silence
==============  ===================================  ========================================

Silence ends as an agent's does: after ``timing.node_lost`` the instance counts as lost. A WebUI that
does not answer for a while may be busy, so a timeout alone does not mean that it is loading.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Literal

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.lib import http_probe
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.protocol.messages import Hello, Progress, Readiness, Report, ServiceState
from qwenctl.store.store import Store

log = logging.getLogger("qwenctl.control.agentless")

HURRY = 0.25
"""Seconds between two probes until the WebUI is ready."""

IDLE = 30.0
"""Seconds until the next step while there is nothing to probe; `Prober.wake` ends them."""

MISSES = 2
"""Failed probes in a row after which a ready WebUI counts as loading."""

BOOT = "agentless-"
"""Prefix of the boot ids made here."""


def probe(address: str, port: int, readiness: Readiness) -> tuple[ProbeResult, str]:
    """Probe the WebUI's readiness path once; an unreachable machine counts as silent."""
    answer, why = http_probe.probe(address, port, readiness.path, timeout=readiness.timeout)
    return (ProbeResult.SILENT if answer is ProbeResult.UNREACHABLE else answer), why


class Prober:
    """Probes the WebUI of one GPU in its own thread while its controller leads.

    Args:
        leads: returns whether the controller certainly holds the lock now.
    """

    def __init__(
        self, name: str, gpu: GpuConfig, store: Store, *, leads: Callable[[], bool]
    ) -> None:
        self.name = name
        self._gpu = gpu
        self._store = store
        self._leads = leads
        self._service = gpu.service[0].name if gpu.service else "webui"
        self._readiness = gpu.service[0].readiness if gpu.service else Readiness()
        self._due = threading.Event()
        self._misses = 0

    def wake(self) -> None:
        """Make `run` probe at once, since the phase or the leader has changed."""
        self._due.set()

    def run(self, stop: threading.Event) -> None:
        """Probe until ``stop`` is set and `wake` has been called."""
        while not stop.is_set():
            self._due.clear()
            try:
                delay = self.step()
            except StoreUnavailable:
                delay = 1.0  # the controller logs it
            except Exception:
                if stop.is_set():
                    return  # the store has been closed
                log.exception("%s: a probe failed; trying again", self.name)
                delay = 5.0
            if not stop.is_set():
                self._due.wait(delay)

    def step(self) -> float:
        """Probe and report once; return the seconds until the next time.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        if not self._leads():
            return IDLE
        snapshot = self._store.snapshot(self.name)
        if not snapshot.phase.running or not snapshot.address:
            self._misses = 0
            return IDLE
        boot = _boot(snapshot)
        if not boot and snapshot.phase in (Phase.BOOTING, Phase.LOADING):
            # Only a probe that begins after the hello may be reported.
            return 0.0 if self._hello(snapshot) else self._readiness.interval
        answer, why = probe(snapshot.address, self._gpu.port, self._readiness)
        if not self._leads():
            return IDLE
        if not boot:
            # Ready without a boot of ours: ``agent`` was set to false while it ran.
            if answer is ProbeResult.READY and self._hello(snapshot):
                return 0.0
            return self._readiness.interval
        if answer is ProbeResult.READY:
            self._misses = 0
            self._report(snapshot, boot, "ready", "")
            return self._readiness.interval
        self._misses += 1
        self._tell_trouble(snapshot, boot, answer, why)
        return min(HURRY, self._readiness.interval)

    def _tell_trouble(self, snapshot: Snapshot, boot: str, answer: ProbeResult, why: str) -> None:
        if snapshot.time("ready_at") is None:
            self._report(snapshot, boot, "loading", why)
            return
        loading = snapshot.node_view.state == "loading"
        silent = answer is ProbeResult.SILENT or (answer is ProbeResult.REFUSED and loading)
        if silent or (self._misses < MISSES and not loading):
            return
        if not loading:
            log.warning("%s: its WebUI no longer answers (%s)", self.name, why)
            self._store.look(self.name, actor="prober", cause=why)  # is the instance still there?
        self._report(snapshot, boot, "loading", why)

    def _hello(self, snapshot: Snapshot) -> bool:
        """Record a boot; return whether the store accepted it.

        The start's number alone cannot be the boot's id: it stays the same where an instance is
        stopped and started outside of qwenctl.
        """
        boot = f"{BOOT}{snapshot.start_seq}-{secrets.token_hex(4)}"
        hello = Hello(gpu=self.name, boot_id=boot)
        verdict, _ = self._store.hello(
            hello, secrets.token_hex(16), heartbeat=self._gpu.timing.heartbeat
        )
        return verdict == "ok"

    def _report(
        self, snapshot: Snapshot, boot: str, state: Literal["loading", "ready"], why: str
    ) -> None:
        """Report a change at once, and otherwise once a heartbeat."""
        view = snapshot.node_view
        heartbeat = self._gpu.timing.heartbeat
        fresh = view.heartbeat_age is not None and view.heartbeat_age < heartbeat
        if fresh and (view.state, view.error) == (state, why):
            return
        service = ServiceState(
            name=self._service,
            state="ready" if state == "ready" else "starting",
            port=self._gpu.port,
            error=why,
        )
        report = Report(
            gpu=self.name,
            boot_id=boot,
            start_seq=snapshot.start_seq,
            state=state,
            error=why,
            progress=Progress(phase="start", text=why) if why else Progress(),
            services=(service,),
        )
        # The store refuses the report if the boot has ended meanwhile.
        self._store.report(report, secrets.token_hex(16), heartbeat=heartbeat)


def _boot(snapshot: Snapshot) -> str:
    """Return the id of this start's boot that a `Prober` has recorded, or an empty string."""
    boot = snapshot.node.get("boot_id", "")
    ours = boot.startswith(BOOT) and snapshot.node.get("start_seq") == str(snapshot.start_seq)
    return boot if ours else ""
