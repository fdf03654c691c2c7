"""Cache a snapshot of each GPU's state, refreshed when something changes.

No request waits for Redis while the snapshot is fresh. A snapshot older than `FRESH` seconds is
refreshed before use. A proxy that has lost the store goes on with the last snapshot, and knows that
it does (docs/architecture.md#why-no-request-is-forwarded-into-a-stop).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from qwenctl.core.snapshot import Snapshot
from qwenctl.store.store import Store
from qwenctl.store.watcher import Watcher

log = logging.getLogger("qwenctl.proxy")

FRESH = 1.0
"""How old a snapshot may be, in seconds: S of
docs/architecture.md#why-no-request-is-forwarded-into-a-stop."""

REFRESH = 0.4
"""How often the snapshot of a GPU in use is refreshed ahead of time, in seconds."""

PATIENCE = 1.0
"""How long a request waits for the store before it counts as lost, in seconds."""


class View:
    """The last known state of a GPU. Used on the event loop only."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.snapshot = Snapshot(gpu, 0.0, {})
        self.fetched_at = float("-inf")
        """When the snapshot was requested (monotonic)."""
        self.tried_at = float("-inf")
        self.lost = ""
        """Why the store cannot be reached, or an empty text."""
        self.used = False
        self.version = 0
        self.changed = asyncio.Event()
        """Set, and replaced by a new event, at each new snapshot and each failed refresh."""
        self.refreshing: asyncio.Task[None] | None = None
        self.stale = False
        """Whether something has changed since the running refresh began."""

    @property
    def age(self) -> float:
        return time.monotonic() - self.fetched_at

    def tell(self) -> None:
        """Wake all tasks that wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Return at the next snapshot, or after ``timeout`` seconds."""
        try:
            await asyncio.wait_for(self.changed.wait(), timeout)
        except asyncio.TimeoutError:
            pass


class SnapshotCache:
    """Keep the views of all GPUs fresh."""

    def __init__(self, store: Store, gpus: Sequence[str], *, delay: float = 0.0) -> None:
        """``delay`` makes every snapshot late, in seconds; for tests of the protocol."""
        self._store = store
        self._views = {gpu: View(gpu) for gpu in gpus}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="snapshot")
        self._delay = delay
        self._watcher: Watcher | None = None
        self._ahead: asyncio.Task[None] | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def on_change(gpu: str, _what: str) -> None:
            try:
                loop.call_soon_threadsafe(self._invalidate, gpu)
            except RuntimeError:
                pass  # the loop has been closed: the proxy goes down

        self._watcher = self._store.watch(list(self._views), on_change)
        self._ahead = asyncio.create_task(self._keep_fresh())
        await asyncio.gather(*(self.refresh(gpu) for gpu in self._views))

    async def stop(self) -> None:
        if self._ahead:
            self._ahead.cancel()
        if self._watcher:
            await asyncio.to_thread(self._watcher.stop)
        self._threads.shutdown(wait=False)

    def peek(self, gpu: str) -> View:
        """Return the last known state, however old."""
        return self._views[gpu]

    async def view(self, gpu: str) -> View:
        """Return the state, refreshed first if it is not fresh."""
        view = self._views[gpu]
        view.used = True
        if view.age <= FRESH:
            return view
        began = time.monotonic()
        if view.lost and began - view.tried_at < FRESH:
            return view  # the store has just failed to answer
        self._ask(view)
        while view.age > FRESH and not (view.lost and view.tried_at >= began):
            if (left := began + PATIENCE - time.monotonic()) <= 0:
                view.lost = view.lost or "the store does not answer"
                view.tried_at = time.monotonic()
                break
            await view.wait(left)
        return view

    async def refresh(self, gpu: str) -> None:
        """Refresh the view; return with a snapshot younger than this call, or the store lost."""
        view = self._views[gpu]
        began = time.monotonic()
        view.stale = True
        self._ask(view)
        while view.fetched_at < began and not (view.lost and view.tried_at >= began):
            await view.changed.wait()

    def _invalidate(self, gpu: str) -> None:
        view = self._views[gpu]
        view.stale = True
        self._ask(view)

    def _ask(self, view: View) -> None:
        """Start a refresh unless one runs.

        Nothing waits for the task itself: it goes on while changes come faster than snapshots.
        """
        if view.refreshing is None or view.refreshing.done():
            view.refreshing = asyncio.create_task(self._refresh(view))

    async def _refresh(self, view: View) -> None:
        loop = asyncio.get_running_loop()
        while True:
            view.stale = False
            asked_at = time.monotonic()
            try:
                snapshot = await loop.run_in_executor(self._threads, self._store.snapshot, view.gpu)
                if self._delay:
                    await asyncio.sleep(self._delay)
            except Exception as error:  # whatever the cause, the last snapshot serves requests
                if not view.lost:
                    log.warning("%s; going on with what is known", error)
                view.lost, view.tried_at = str(error), time.monotonic()
                view.tell()
                return
            if view.lost:
                log.warning("the store answers again")
            view.snapshot, view.fetched_at, view.lost = snapshot, asked_at, ""
            view.version += 1
            view.tell()
            if not view.stale:
                return

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            for view in self._views.values():
                if view.used and view.age > REFRESH / 2:
                    view.used = False
                    self._ask(view)
