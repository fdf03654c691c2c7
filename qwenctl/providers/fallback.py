"""Several instances for one GPU, in order of preference: when one has no capacity, the next.

To the controller it is one instance, so nothing else knows of it. Two rules keep it from ever
having two of them on: a start looks at all of them first, and after a start that may have been
accepted it tries no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from qwenctl.lifecycle import Observed
from qwenctl.providers.base import (
    Accepted,
    Conflict,
    NoCapacity,
    NotFound,
    Observation,
    Provider,
    ProviderError,
)

__all__ = ["Fallback"]

AVOID_SECONDS = 600.0
"""How long a candidate that was refused after its start had been accepted is tried last."""

_RANK = (
    Observed.ABSENT,
    Observed.STOPPED,
    Observed.STOPPING,
    Observed.UNKNOWN,
    Observed.STARTING,
    Observed.RUNNING,
)
"""The candidate with the highest rank speaks for all of them."""


class Fallback:
    """The candidates as one `qwenctl.providers.base.Provider`.

    Args:
        candidates: name and provider of each, the preferred one first.
        monotonic: a clock, for tests.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[str, Provider]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = [name for name, _ in candidates]
        self._providers = [provider for _, provider in candidates]
        self._monotonic = monotonic
        slowest = max(provider.call_timeout for provider in self._providers)
        # A look at all and one start; further starts as long as there is time enough.
        self.call_timeout = 2 * slowest + 1.0
        self.observe_interval = max(provider.observe_interval for provider in self._providers)
        self._starting = threading.Lock()
        self._started: int | None = None
        """Who was started last and has not been seen running since."""
        self._avoid_until: dict[int, float] = {}
        self._refusals: dict[int, tuple[float, str]] = {}
        """When and why a candidate was passed over in the present round of starts."""

    def describe(self) -> Observation:
        """What the cloud says about the candidate that is on, or about all if none is."""
        seen = self._look()
        best = max(range(len(seen)), key=lambda index: (_RANK.index(seen[index].state), -index))
        state, chosen = seen[best].state, seen[best]
        if self._started is not None and seen[self._started].state is Observed.RUNNING:
            self._avoid_until.pop(self._started, None)
            self._started = None
        if state in (Observed.STOPPED, Observed.ABSENT):
            reasons = [
                f"{name}: {one.reason}"
                for name, one in zip(self._names, seen, strict=True)
                if one.reason
            ]
        else:
            also = [
                name
                for name, one in zip(self._names, seen, strict=True)
                if one is not chosen and one.state in (Observed.STARTING, Observed.RUNNING)
            ]
            reasons = [chosen.reason] if chosen.reason else []
            if also:
                reasons.append(
                    f"{' and '.join(also)} is on as well and billed; it is stopped together with "
                    f"{self._names[best]}"
                )
        return Observation(state, chosen.instance_id, chosen.address, "; ".join(reasons))

    def start(self) -> Accepted:
        """Start the first candidate that has capacity, unless one is on already.

        Raises:
            NoCapacity: none has.
            Conflict: one is being stopped, or there was not time enough to try all of them.
            ProviderError: a look or a start failed otherwise; no other candidate was tried.
        """
        with self._starting:
            return self._start(self._monotonic() + self.call_timeout)

    def _start(self, deadline: float) -> Accepted:
        seen = self._look()
        states = [one.state for one in seen]
        if Observed.RUNNING in states or Observed.STARTING in states:
            return Accepted()
        for busy in (Observed.STOPPING, Observed.UNKNOWN):
            if busy in states:
                index = states.index(busy)
                raise Conflict(f"{self._names[index]} is {busy.value}: {seen[index].reason}")
        self._begin_round(seen)
        for index in self._order():
            name, provider = self._names[index], self._providers[index]
            if self._monotonic() + provider.call_timeout > deadline:
                raise Conflict("the cloud answers slowly; the other candidates are tried next")
            try:
                accepted = provider.start()
            except (NoCapacity, NotFound) as refusal:
                self._pass_over(index, str(refusal))
                continue
            self._started = index
            passed, self._refusals = self._reasons(), {}
            note = f"{name} was started instead of {passed}" if passed else accepted.note
            return Accepted(accepted.request_id, note)
        passed, self._refusals, self._avoid_until = self._reasons(), {}, {}
        raise NoCapacity(f"none of the {len(self._names)} candidates can be started: {passed}")

    def stop(self) -> Accepted:
        """Stop every candidate that is on."""
        seen = self._look()
        self._started, self._refusals = None, {}
        accepted, problem = Accepted(), None
        for provider, one in zip(self._providers, seen, strict=True):
            if one.state not in (Observed.STARTING, Observed.RUNNING, Observed.UNKNOWN):
                continue
            try:
                accepted = provider.stop()
            except ProviderError as error:  # the others are stopped all the same
                problem = error
        if problem is not None:
            raise problem
        return accepted

    def _look(self) -> list[Observation]:
        # At the same time, so that those of one account share a call.
        with ThreadPoolExecutor(len(self._providers), thread_name_prefix="look") as pool:
            return list(pool.map(lambda provider: provider.describe(), self._providers))

    def _order(self) -> list[int]:
        """The candidates not yet passed over, those refused lately last."""
        now = self._monotonic()
        left = [index for index in range(len(self._providers)) if index not in self._refusals]
        return sorted(left, key=lambda index: self._avoid_until.get(index, 0.0) > now)

    def _begin_round(self, seen: Sequence[Observation]) -> None:
        """Forget the refusals of a round that nobody went on with, and note a late one: EC2 may
        accept a start and find some seconds later that it has no such machine."""
        old = self._monotonic() - 2 * self.call_timeout
        self._refusals = {i: one for i, one in self._refusals.items() if one[0] > old}
        if self._started is not None:
            index, self._started = self._started, None
            self._pass_over(index, seen[index].reason or "it stopped again right after its start")
            self._avoid_until[index] = self._monotonic() + AVOID_SECONDS

    def _pass_over(self, index: int, why: str) -> None:
        self._refusals[index] = (self._monotonic(), why)

    def _reasons(self) -> str:
        return "; ".join(f"{self._names[i]}: {why}" for i, (_, why) in self._refusals.items())
