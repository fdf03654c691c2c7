"""End requests that have outlived their instance.

A node that vanishes, or that freezes, closes no connection. Without this its requests would wait
until the kernel gives the connection up, or for ever. A generation that says nothing until it is
whole looks the same from here where the agent is silent, too, so that then the service is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time

from qwenctl.core.address import NodeAddress
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.lib.text import duration
from qwenctl.protocol.messages import Readiness

from .admit import Inbound
from .forward import Forwarder, UpstreamDied
from .link import Link
from .usage import UsageTracker

log = logging.getLogger("qwenctl.proxy")

SWEEP = 1.0
"""Seconds between two looks at the open requests."""

MOVING = 5.0
"""A request with a byte in the last so many seconds is not ended: whatever the cloud says, its
instance answers."""

HOLLOW = 3600.0
"""How long a request may keep the GPU on without a byte while each report of the agent says that
nothing runs and that no GPU works, or that there is none and only a probe is answered, in seconds: a
service that hangs, and a client that waits."""

REPORTED = 60.0
"""A report older than this says nothing of the present, in seconds."""

IDLE_PERCENT = 10.0
"""GPU utilisation below which no work is going on."""


class _Open:
    """An open request; as a context manager it is watched, and gives its link."""

    __slots__ = (
        "_all",
        "_cancelled",
        "_task",
        "counts",
        "inbound",
        "link",
        "opened",
        "why",
        "worked_at",
    )

    def __init__(self, every: set[_Open], inbound: Inbound, link: Link, counts: bool) -> None:
        self._all, self.inbound, self.link, self.counts = every, inbound, link, counts
        self._task = asyncio.current_task()
        view = inbound.view
        self.opened = view.snapshot.now + link.moved_at - view.fetched_at
        """When, by the store's clock."""
        self.worked_at = link.moved_at
        """When the node, as far as is known, may have been at work (monotonic)."""
        self.why = ""
        self._cancelled = False

    def end(self, why: str) -> None:
        log.info("%s: a request is ended: %s", self.inbound.name, why)
        self.why = why
        self.cancel()

    def cancel(self) -> None:
        if self._task and not self._cancelled:  # what it does at its end must not be cancelled
            self._cancelled = True
            self._task.cancel()

    def __enter__(self) -> Link:
        self._all.add(self)
        return self.link

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._all.discard(self)
        if self.why and kind is asyncio.CancelledError:
            raise UpstreamDied(self.why, started=self.link.started) from None


class Links:
    """The open connections to nodes. Used on the event loop only."""

    def __init__(self, usage: UsageTracker, forwarder: Forwarder) -> None:
        self._usage = usage
        self._forwarder = forwarder
        self._open: set[_Open] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._probes: dict[str, asyncio.Task[None]] = {}

    def open(self, inbound: Inbound, *, counts: bool = False) -> _Open:
        """Watch a request while it is forwarded; ``counts``: it keeps the GPU on.

        As a context manager, the result raises `UpstreamDied` if its instance is gone or given up.
        """
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        return _Open(self._open, inbound, Link(self._usage.silence(inbound.name)), counts)

    def end_quiet(self, seconds: float) -> bool:
        """Cancel requests without a byte in so many seconds; return whether others are open."""
        for entry in tuple(self._open):
            if entry.link.idle > seconds:
                entry.cancel()
        return any(entry.link.idle <= seconds for entry in self._open)

    async def _sweep(self) -> None:
        while self._open:
            await asyncio.sleep(SWEEP)
            for entry in tuple(self._open):
                if entry.why:
                    continue
                if why := self._over(entry):
                    entry.end(why)
                elif self._doubtful(entry):
                    name = entry.inbound.name
                    if name not in self._probes or self._probes[name].done():
                        self._probes[name] = asyncio.create_task(self._probe(entry.inbound))

    def _doubtful(self, entry: _Open) -> bool:
        """Whether nothing is heard of the node, neither of its agent nor for its requests."""
        inbound = entry.inbound
        age, bound = inbound.view.snapshot.node_view.heartbeat_age, inbound.gpu.timing.node_lost / 2
        silent = self._usage.silence(inbound.name).seconds > bound and (age is None or age > bound)
        return silent and entry.counts and entry.link.idle <= HOLLOW

    async def _probe(self, inbound: Inbound) -> None:
        """Ask the service whether it is there; an answer vouches for the work as a byte of it does."""
        gpu = inbound.gpu
        base = NodeAddress(gpu.address or inbound.view.snapshot.address, gpu.port).url
        readiness = gpu.service[0].readiness if gpu.service else Readiness()
        if await self._forwarder.answers(base, readiness.path, readiness.timeout):
            self._usage.silence(inbound.name).answers()

    def _over(self, entry: _Open) -> str:
        """Return why nothing can come of this request any more, or an empty text."""
        view, idle = entry.inbound.view, entry.link.idle
        snapshot, now = view.snapshot, time.monotonic()
        known = not view.lost and idle >= MOVING
        if not known or view.age > REPORTED or not _reports_rest(snapshot):
            entry.worked_at = now
        if not known:
            return ""
        if entry.counts and now - entry.worked_at > HOLLOW:
            return f"the node has worked on nothing for {duration(HOLLOW)}"
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure and failure.instance_is_bad:  # it may still do the work that it was given
            silence = self._usage.silence(entry.inbound.name).seconds
            lost = silence > entry.inbound.gpu.timing.node_lost
            return "the node does not answer any more" if lost else ""
        return "its instance is gone" if _gone_since(snapshot, entry.opened) else ""


def _reports_rest(snapshot: Snapshot) -> bool:
    """Whether the agent reports that nothing runs, and has seen that no GPU works."""
    report, age = snapshot.report, snapshot.node_view.heartbeat_age
    if report is None or age is None or age > REPORTED or report.active:
        return False
    loads = [gpu.utilisation_percent for gpu in report.resources.gpus]
    fresh = report.resources.gpus_age is not None and report.resources.gpus_age <= REPORTED
    return bool(loads) and fresh and all(x is not None and x < IDLE_PERCENT for x in loads)


def _gone_since(snapshot: Snapshot, opened: float) -> bool:
    """Whether an instance that ran at that time is known to run no more.

    An empty store shows "off" too, and a stale one what was long ago: neither knows of a look, or
    of a start, since then.
    """
    ended = snapshot.phase in (Phase.OFF, Phase.STARTING, Phase.FAILED) and snapshot.observed.gone
    seen_at, began_at = snapshot.time("observed_at") or 0.0, snapshot.time("began_at") or 0.0
    return (ended and seen_at > opened) or began_at > opened
