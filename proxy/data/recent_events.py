"""Each GPU's last events, of which only new ones are fetched."""

from __future__ import annotations

from qwenctl.core.events import Event
from qwenctl.store.store import Store

HISTORY = 400
"""How many events the steps and the ETA are computed from."""


class RecentEvents:
    """The last events of each GPU. For one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, list[Event]] = {}

    def of(self, gpu: str) -> list[Event]:
        """Return a GPU's last events, the newest last.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        known = self._known.get(gpu)
        if known:
            known += self._store.events(gpu, HISTORY, after=known[-1].id)
        else:
            known = self._store.events(gpu, HISTORY)
        self._known[gpu] = known = known[-HISTORY:]
        return known
