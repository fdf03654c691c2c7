"""Joins looks at many instances of one account into few calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwenctl.clouds.base import Denied, NotFound

__all__ = ["MAX_IDS", "Batch"]

MAX_IDS = 100
"""How many instances one call may name: the limit of Alibaba Cloud; EC2 allows twice as many."""

WINDOW = 0.1
"""Seconds for which the first who asks waits for others. The controllers of all GPUs look at the
same moment while nothing happens (`qwenctl.core.lifecycle`), so one call does for a hundred."""

T = TypeVar("T")


@dataclass
class _Round(Generic[T]):
    ids: set[str] = field(default_factory=set)
    answer: Future[Mapping[str, T]] = field(default_factory=Future)


class Batch(Generic[T]):
    """``get`` from any number of threads; whoever comes first makes the call for all.

    What it returns was always read after it was asked for: a round is closed before its call.

    Args:
        fetch: what the cloud says about these instances, by id; those it does not know are missing.
    """

    def __init__(
        self, fetch: Callable[[Sequence[str]], Mapping[str, T]], window: float = WINDOW
    ) -> None:
        self._fetch = fetch
        self._window = window
        self._lock = threading.Lock()
        self._round: _Round[T] | None = None

    def get(self, id_: str) -> T | None:
        """What the cloud says about the instance; None if it knows no such instance.

        Raises:
            ProviderError: as ``fetch`` does.
        """
        with self._lock:
            first = self._round is None
            current = self._round = self._round or _Round()
            current.ids.add(id_)
            if len(current.ids) >= MAX_IDS:
                self._round = None
        if first:
            self._lead(current)
        try:
            return current.answer.result().get(id_)
        except (Denied, NotFound):
            if len(current.ids) == 1:
                raise
            return self._fetch([id_]).get(id_)  # one that is refused spoils it for no other

    def _lead(self, current: _Round[T]) -> None:
        time.sleep(self._window)
        with self._lock:
            if self._round is current:
                self._round = None
        try:
            current.answer.set_result(self._fetch(sorted(current.ids)))
        except BaseException as error:
            current.answer.set_exception(error)
