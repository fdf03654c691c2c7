"""Join concurrent descriptions of an account's instances into few calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwenctl.clouds.base import Denied, NotFound

MAX_IDS = 100
"""How many ids one call may name: the limit of ECS DescribeInstances,
https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-describeinstances."""

WINDOW = 0.1
"""Seconds for which the first caller waits for others. Idle controllers look at the same moment
(`qwenctl.core.lifecycle`), so that one call serves a hundred GPUs."""

T = TypeVar("T")


@dataclass
class _Round(Generic[T]):
    ids: set[str] = field(default_factory=set)
    answer: Future[Mapping[str, T]] = field(default_factory=Future)


class Batch(Generic[T]):
    """Joins `get` calls of many threads: the first thread makes the call for all.

    The answer is always read after `get` was called: a round is closed before its call.

    Args:
        fetch: describes instances, by id; unknown ids are missing.
    """

    def __init__(
        self, fetch: Callable[[Sequence[str]], Mapping[str, T]], window: float = WINDOW
    ) -> None:
        self._fetch = fetch
        self._window = window
        self._lock = threading.Lock()
        self._round: _Round[T] | None = None

    def get(self, id_: str) -> T | None:
        """Return the description of the instance; None if the cloud does not know it.

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
            return self._fetch([id_]).get(id_)  # a refusal of one id must not affect the others

    def _lead(self, current: _Round[T]) -> None:
        time.sleep(self._window)
        with self._lock:
            if self._round is current:
                self._round = None
        try:
            current.answer.set_result(self._fetch(sorted(current.ids)))
        except BaseException as error:
            current.answer.set_exception(error)
