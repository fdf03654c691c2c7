"""End requests that have outlived their instance.

A node that vanishes, or that freezes, closes no connection. Without this its requests would wait
until the kernel gives the connection up, or for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot

from .admit import Inbound
from .forward import UpstreamDied
from .link import Link
from .usage import UsageTracker

log = logging.getLogger("qwenctl.proxy")

SWEEP = 1.0
"""Seconds between two looks at the open requests."""

MOVING = 5.0
"""A request with a byte in the last so many seconds is not ended: whatever the cloud says, its
instance answers."""


@dataclass(eq=False, slots=True)
class _Open:
    inbound: Inbound
    link: Link
    since: float
    """When it was opened, by the store's clock."""
    task: asyncio.Task[object] | None
    why: str = ""


class Links:
    """The open connections to nodes. Used on the event loop only."""

    def __init__(self, usage: UsageTracker) -> None:
        self._usage = usage
        self._open: set[_Open] = set()
        self._sweeper: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def open(self, inbound: Inbound) -> Iterator[Link]:
        """Watch a request while it is forwarded.

        Raises:
            UpstreamDied: its instance is gone, or was given up.
        """
        link = Link(self._usage.silence(inbound.name))
        since = inbound.view.snapshot.now + inbound.view.age
        entry = _Open(inbound, link, since, asyncio.current_task())
        self._open.add(entry)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())
        try:
            yield link
        except asyncio.CancelledError:
            if not entry.why:
                raise
            raise UpstreamDied(entry.why, started=link.started) from None
        finally:
            self._open.discard(entry)

    async def _sweep(self) -> None:
        while self._open:
            await asyncio.sleep(SWEEP)
            for entry in tuple(self._open):
                if not entry.why and (why := self._over(entry)) and entry.task:
                    log.info("%s: a request is ended: %s", entry.inbound.name, why)
                    entry.why = why
                    entry.task.cancel()

    def _over(self, entry: _Open) -> str:
        """Return why nothing can come of this request any more, or an empty text."""
        view, idle = entry.inbound.view, entry.link.idle
        if view.lost or idle < MOVING:
            return ""
        snapshot = view.snapshot
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure and failure.instance_is_bad:  # it may still do the work that it was given
            silence = self._usage.silence(entry.inbound.name).seconds
            lost = silence > entry.inbound.gpu.timing.node_lost
            return "the node does not answer any more" if lost else ""
        return "its instance is gone" if _gone_since(snapshot, entry.since) else ""


def _gone_since(snapshot: Snapshot, opened: float) -> bool:
    """Whether an instance that ran at that time is known to run no more.

    An empty store shows "off" too, and a stale one what was long ago: neither knows of a look, or
    of a start, since then.
    """
    ended = snapshot.phase in (Phase.OFF, Phase.STARTING, Phase.FAILED) and snapshot.observed.gone
    seen_at, began_at = snapshot.time("observed_at") or 0.0, snapshot.time("began_at") or 0.0
    return (ended and seen_at > opened) or began_at > opened
