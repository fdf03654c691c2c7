"""Join concurrent descriptions of an account's instances into few calls."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwenctl.clouds.base import NotFound, ProviderError, Throttled, Transient

MAX_IDS = 100
"""How many ids one call may name: the limit of ECS DescribeInstances,
https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-describeinstances."""

WINDOW = 0.1
"""Seconds for which the first caller waits for others. Idle controllers look at the same moment
(`qwenctl.core.lifecycle`), so that one call serves a hundred GPUs."""

PAUSES = {Transient: (1.0, 8.0), Throttled: (2.0, 60.0)}
"""Seconds without a call after two and after many failures in a row; the pause doubles."""

DENIED_PAUSES = (15.0, 60.0)
"""The same for a denied account, and for the instances that are denied to it."""

PROBES = 5
"""The number of pauses within which each denied instance is asked for alone."""

SPLITTERS = 8
"""How many parts of a refused call are asked for at the same time."""

SPLIT_SECONDS = 30.0
"""How long a refused call is split; what is left counts as refused."""

T = TypeVar("T")


@dataclass
class _Round(Generic[T]):
    answers: dict[str, Future[Mapping[str, T] | Exception]] = field(default_factory=dict)


@dataclass
class _Backoff:
    """The pause after failures in a row; there is none after the first."""

    error: ProviderError | None = None
    until: float = float("-inf")
    pause: float = 0.0

    def failed(self, error: ProviderError, now: float, pauses: tuple[float, float]) -> None:
        if self.error is not None:
            self.pause = min(max(2 * self.pause, pauses[0]), pauses[1])
        self.error, self.until = error, now + self.pause


class Batch(Generic[T]):
    """Joins `get` calls of many threads: the first thread makes the call for all.

    The answer is always read after `get` was called: a round is closed before its call.

    No call is made for a while after the account was refused or throttled. A call that is refused
    because of some of its instances is split to find these; they are then left out, and asked for
    alone in turn until the cloud accepts them.

    Args:
        fetch: describes instances, by id; unknown ids are missing.
        clock: the monotonic time, for tests.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[str]], Mapping[str, T]],
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._round: _Round[T] | None = None
        self._account = _Backoff()
        self._refused: dict[str, ProviderError] = {}
        """The refused instances, that asked for least recently first."""
        self._probing = _Backoff()

    def get(self, id_: str) -> T | None:
        """Return the description of the instance; None if the cloud does not know it.

        Raises:
            ProviderError: as ``fetch`` does.
        """
        with self._lock:
            if (error := self._paused()) is not None:
                raise copy.copy(error)
            refusal = self._refused.get(id_)
            if refusal is None:
                leads = self._round is None
                current = self._round = self._round or _Round()
                answer = current.answers.setdefault(id_, Future())
                if len(current.answers) >= MAX_IDS:
                    self._round = None
            elif not isinstance(refusal, NotFound):
                if self._clock() < self._probing.until:
                    raise copy.copy(refusal)
                self._probing.until = self._clock() + DENIED_PAUSES[1]  # one thread at a time
        if isinstance(refusal, NotFound):  # absence is an answer, which must be new
            return _result(id_, self._ask_again([[id_]])[id_])
        if refusal is not None:
            return self._probe(id_, refusal)
        if leads:
            self._lead(current)
        return _result(id_, answer.result())

    def _lead(self, current: _Round[T]) -> None:
        time.sleep(self._window)
        with self._lock:
            if self._round is current:
                self._round = None
        try:
            self._ask(current.answers)
        except BaseException as error:
            for answer in current.answers.values():
                if not answer.done():
                    answer.set_exception(error)

    def _ask(self, answers: Mapping[str, Future[Mapping[str, T] | Exception]]) -> None:
        """Ask for the instances, and set each answer as soon as it is known.

        A refused call is split in halves until the refused instances are found.
        """
        end = self._clock() + SPLIT_SECONDS
        parts: list[Sequence[str]] = [sorted(answers)]
        while parts:
            halves: list[Sequence[str]] = []
            for part, outcome in zip(parts, self._calls(parts), strict=True):
                refused = _about_instances(outcome)
                if refused and len(part) > 1 and self._clock() < end:
                    middle = len(part) // 2
                    halves += [part[:middle], part[middle:]]
                    continue
                if refused:
                    self._set_apart(part, refused)
                for id_ in part:
                    answers[id_].set_result(outcome)
            parts = halves

    def _calls(self, parts: Sequence[Sequence[str]]) -> list[Mapping[str, T] | Exception]:
        if len(parts) == 1:
            return [self._call(parts[0])]
        with ThreadPoolExecutor(min(SPLITTERS, len(parts)), thread_name_prefix="look") as pool:
            return list(pool.map(self._call, parts))

    def _call(self, ids: Sequence[str]) -> Mapping[str, T] | Exception:
        """Make one call unless the account pauses; return what it raises."""
        with self._lock:
            if (paused := self._paused()) is not None:
                return paused
        outcome: Mapping[str, T] | Exception
        try:
            outcome = self._fetch(ids)
        except Exception as error:  # raised again in the callers' threads
            outcome = error
        with self._lock:
            if not isinstance(outcome, ProviderError) or _about_instances(outcome):
                self._account = _Backoff()
            else:
                kinds = (pauses for kind, pauses in PAUSES.items() if isinstance(outcome, kind))
                self._account.failed(outcome, self._clock(), next(kinds, DENIED_PAUSES))
        return outcome

    def _paused(self) -> ProviderError | None:
        return self._account.error if self._clock() < self._account.until else None

    def _set_apart(self, ids: Sequence[str], refusal: ProviderError) -> None:
        with self._lock:
            if all(isinstance(other, NotFound) for other in self._refused.values()):
                self._probing = _Backoff()
                self._probing.failed(refusal, self._clock(), DENIED_PAUSES)
            self._refused.update(dict.fromkeys(ids, refusal))

    def _probe(self, id_: str, refusal: ProviderError) -> T | None:
        """Ask for the denied instances again: for all together, else in turn for some alone."""
        with self._lock:
            denied = [one for one, why in self._refused.items() if not isinstance(why, NotFound)]
        if not denied:  # another thread has found them accepted
            return self.get(id_)
        outcomes = self._ask_again([denied[:MAX_IDS]])
        if len(denied) > 1 and _about_instances(outcomes[denied[0]]):
            outcomes = self._ask_again([[one] for one in denied[: -(-len(denied) // PROBES)]])
        with self._lock:
            if any(isinstance(outcome, Mapping) for outcome in outcomes.values()):
                self._probing = _Backoff()
            self._probing.failed(refusal, self._clock(), DENIED_PAUSES)
        return _result(id_, outcomes.get(id_, refusal))

    def _ask_again(self, parts: Sequence[Sequence[str]]) -> dict[str, Mapping[str, T] | Exception]:
        """Ask for instances that were refused; return each outcome."""
        outcomes = {}
        for part, outcome in zip(parts, self._calls(parts), strict=True):
            with self._lock:
                for id_ in part:
                    outcomes[id_] = outcome
                    if isinstance(outcome, Mapping):
                        self._refused.pop(id_, None)
                    elif len(part) == 1 and (refusal := _about_instances(outcome)):
                        self._refused.pop(id_, None)
                        self._refused[id_] = refusal  # at the end
        return outcomes


def _about_instances(outcome: object) -> ProviderError | None:
    """Return the refusal if it may concern only some of the instances asked for."""
    if not isinstance(outcome, ProviderError) or outcome.about_account:
        return None
    return None if isinstance(outcome, (Throttled, Transient)) else outcome


def _result(id_: str, outcome: Mapping[str, T] | Exception) -> T | None:
    if isinstance(outcome, Exception):
        raise copy.copy(outcome)
    return outcome.get(id_)
