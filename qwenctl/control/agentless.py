"""Plays the node's part for a GPU without an agent (``agent = false``).

Its WebUI starts by itself with the instance. So whoever leads asks it over HTTP whether it is ready,
and puts the answer where an agent's reports would be. Nothing after that knows the difference.

==============  ===================================  ========================================
the WebUI       before it was ready in this boot     afterwards
==============  ===================================  ========================================
below 400       ready                                ready, each heartbeat
400 and above   loading                              loading, once it has said so twice
refuses         loading                              loading, once; then silence
says nothing    loading                              silence
==============  ===================================  ========================================

Silence has the same end as an agent's: after ``timing.node_lost`` the instance is given up. A WebUI
that says nothing for a while may be at work, so that alone does not make it one that loads.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Literal

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.lifecycle import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import StoreUnavailable
from qwenctl.lib import http_probe
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.protocol.messages import Hello, Progress, Readiness, Report, ServiceState
from qwenctl.store.store import Store

__all__ = ["Prober", "probe"]

log = logging.getLogger("qwenctl.control.agentless")

HURRY = 0.25
"""Seconds between two probes while the WebUI is waited for."""

IDLE = 30.0
"""Seconds until the next look while there is nothing to ask; `Prober.wake` ends them."""

MISSES = 2
"""So many odd answers in a row make a WebUI that was ready one that is not."""

BOOT = "agentless-"
"""How the id of a boot begins that no agent has named."""

_PHASES = (Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING)


def probe(address: str, port: int, readiness: Readiness) -> tuple[ProbeResult, str]:
    """Probe the WebUI's readiness path once; a machine without a route is as silent as any."""
    answer, why = http_probe.probe(address, port, readiness.path, timeout=readiness.timeout)
    return (ProbeResult.SILENT if answer is ProbeResult.UNREACHABLE else answer), why


class Prober:
    """Asks the WebUI of one GPU, in a thread of its own, as long as its controller leads.

    Args:
        leads: whether the controller holds the lock, for sure, right now.
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
        """Have `run` look at once: the phase or the leader has changed."""
        self._due.set()

    def run(self, stop: threading.Event) -> None:
        """Probe until ``stop`` is set and `wake` has been called."""
        while not stop.is_set():
            self._due.clear()
            try:
                delay = self.step()
            except StoreUnavailable:
                delay = 1.0  # the controller says so
            except Exception:
                if stop.is_set():
                    return  # the store has been closed
                log.exception("%s: a probe failed; trying again", self.name)
                delay = 5.0
            if not stop.is_set():
                self._due.wait(delay)

    def step(self) -> float:
        """Look, ask and report once; the seconds until the next time.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        if not self._leads():
            return IDLE
        snapshot = self._store.snapshot(self.name)
        if snapshot.phase not in _PHASES or not snapshot.address:
            self._misses = 0
            return IDLE
        boot = _boot(snapshot)
        if not boot and snapshot.phase in (Phase.BOOTING, Phase.LOADING):
            # What is reported then was asked after it.
            return 0.0 if self._hello(snapshot) else self._readiness.interval
        answer, why = probe(snapshot.address, self._gpu.port, self._readiness)
        if not self._leads():
            return IDLE
        if not boot:
            # Ready before there was an agentless boot: the configuration was changed.
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
        """Begin a boot's record; whether it counts.

        The number of the start alone would not do for a name: an instance that somebody else starts
        has the same one as the boot before, which has ended.
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
        """Report what is new, and each heartbeat that nothing is."""
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
        # A boot that has ended meanwhile is not there to be reported about: the store refuses.
        self._store.report(report, secrets.token_hex(16), heartbeat=heartbeat)


def _boot(snapshot: Snapshot) -> str:
    """The boot that we, or a leader before us, have begun in this start; else empty."""
    boot = snapshot.node.get("boot_id", "")
    ours = boot.startswith(BOOT) and snapshot.node.get("start_seq") == str(snapshot.start_seq)
    return boot if ours else ""
