"""Several instances for one GPU, in order of preference, as one provider.

The next candidate is tried when one has no capacity. Two are never on for long:

- a start looks at all of them first, and does nothing while one is on, stopping, or cannot be seen;
- after a start that was accepted, or may have been, no other candidate is tried before the cloud
  has had time to show the result;
- a candidate that others have started (EC2 restarts a reclaimed persistent spot instance by itself:
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/interruption-behavior.html) is stopped as
  soon as it is seen, while the serving candidate goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from qwenctl.clouds.base import (
    Accepted,
    Conflict,
    NoCapacity,
    NotFound,
    Observation,
    Provider,
    ProviderError,
    Transient,
    checked,
)
from qwenctl.clouds.claimed import Claimed
from qwenctl.core.phase import Observed
from qwenctl.lib.text import in_words

log = logging.getLogger("qwenctl.clouds.fallback")

SETTLE_SECONDS = 30.0
"""How long a cloud may show the old state after it accepted a start."""

AVOID_SECONDS = 600.0
"""How long a candidate is tried last that failed after an accepted start, or that the cloud reclaims
again and again."""

CONFLICT_SECONDS = 60.0
"""How long a candidate that is off may refuse a start for its state before the next is tried."""

_ON = (Observed.STARTING, Observed.RUNNING)
_RANK = (
    Observed.ABSENT,
    Observed.STOPPED,
    Observed.UNKNOWN,
    Observed.STOPPING,
    Observed.STARTING,
    Observed.RUNNING,
)
"""The candidate with the highest rank gives the state of the GPU."""


@dataclass(frozen=True)
class _Seen:
    """The observation of a candidate; ``error``: it could not be described."""

    at: Observation
    error: ProviderError | None = None

    @property
    def state(self) -> Observed:
        return self.at.state


class Fallback:
    """The candidates as a `qwenctl.clouds.base.Provider` and `MultiInstanceProvider`.

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
        # A look at all and one call; further calls while time is left.
        self.call_timeout = 2 * slowest + 1.0
        self.observe_interval = max(provider.observe_interval for provider in self._providers)
        self._calling = threading.Lock()
        self._serving = ""
        self._serves: int | None = None
        """The candidate that was on at the last look, until a look shows it off."""
        self._served: int | None = None
        """The candidate that was on last, also when it is off now."""
        self._started: tuple[int, float, bool] | None = None
        """The candidate started last and not seen running since, when, and whether the cloud is
        known to have accepted the start."""
        self._avoid_until: dict[int, float] = {}
        self._refusals: dict[int, tuple[float, str]] = {}
        """When and why a candidate was passed over in the current round of starts."""

        self._conflicts: dict[int, tuple[float, float]] = {}
        """When a candidate first and last refused its start for its state, in a row."""

    def wrap(self, wrapper: Callable[[Provider], Provider]) -> None:
        """Replace each candidate by its wrapper; before the first call."""
        self._providers = [wrapper(provider) for provider in self._providers]

    def describe(self) -> Observation:
        """Describe the candidate that is on, or all candidates if none is.

        Raises:
            ProviderError: a candidate cannot be described, and no other is on.
        """
        seen = self._look()
        best = self._speaker(seen)
        if error := seen[best].error:
            raise error
        self._serves = best if seen[best].state in _ON else None
        self._served = best if seen[best].state in _ON else self._served
        if self._started is not None and seen[self._started[0]].state is Observed.RUNNING:
            self._avoid_until.pop(self._started[0], None)
            self._started = None
        chosen = seen[best].at
        reasons = [chosen.reason] if chosen.reason else []
        if chosen.state not in _ON:
            reasons = [
                f"{name}: {one.at.reason}"
                for name, one in zip(self._names, seen, strict=True)
                if one.at.reason
            ]
        surplus = []
        for index, one in enumerate(seen):
            if index == best:
                continue
            if one.state in _ON:
                surplus.append(self._names[index])
            elif one.error and chosen.state in _ON:
                reasons.append(f"{self._names[index]} cannot be looked at: {one.error}")
        if surplus:
            reasons.append(f"{' and '.join(surplus)} is on as well, and is stopped")
        return Observation(
            chosen.state, chosen.instance_id, chosen.address, "; ".join(reasons), bool(surplus)
        )

    def serving(self, instance_id: str) -> None:
        """Name the instance that served at the last look: it goes on while it is on."""
        self._serving = instance_id

    def avoid(self) -> None:
        """Try the candidate that served last after the others for `AVOID_SECONDS`."""
        if self._served is not None:
            self._avoid_until[self._served] = self._monotonic() + AVOID_SECONDS

    def stop_surplus(self) -> None:
        """Stop every candidate that is on, except the serving one.

        Raises:
            Conflict: a candidate is starting, and can be stopped once it runs.
            ProviderError: a stop failed; it is tried again after the next look.
        """
        deadline = self._monotonic() + self.call_timeout
        with self._calling:
            seen = self._look()
            best = self._speaker(seen)
            if seen[best].state not in _ON:
                return
            others = [i for i in range(len(seen)) if i != best]
            self._stop([i for i in others if seen[i].state is Observed.RUNNING], deadline)
            for index in others:
                if seen[index].state is Observed.STARTING:
                    raise Conflict(f"{self._names[index]} is stopped as soon as it runs")

    def start(self) -> Accepted:
        """Start the first candidate that has capacity, unless one is on already.

        Raises:
            NoCapacity: no candidate has capacity.
            NotFound: no candidate exists any more.
            Conflict: a candidate is being stopped or was just started, its state does not allow
                a start yet, or time ran out before all were tried.
            ProviderError: a look or a start failed otherwise; no other candidate was tried.
        """
        deadline = self._monotonic() + self.call_timeout
        with self._calling:
            return self._start(self._look(), deadline)

    def _start(self, seen: Sequence[_Seen], deadline: float) -> Accepted:
        states = [one.state for one in seen]
        if any(state in _ON for state in states):
            return Accepted()
        for one in seen:
            if one.error:
                raise one.error
        for busy in (Observed.STOPPING, Observed.UNKNOWN):
            if busy in states:
                index = states.index(busy)
                raise Conflict(f"{self._names[index]} is {busy.value}: {seen[index].at.reason}")
        self._begin_round(seen)
        for index in self._order():
            name, provider = self._names[index], self._providers[index]
            if states[index] is Observed.ABSENT:
                self._pass_over(index, seen[index].at.reason or "there is no such instance")
                continue
            if self._monotonic() + provider.call_timeout > deadline:
                raise Conflict("the cloud answers slowly; the other candidates are tried next")
            try:
                accepted = provider.start()
            except (NoCapacity, NotFound) as refusal:
                self._pass_over(index, str(refusal))
                continue
            except Conflict as refusal:
                if not self._lasts(index):
                    raise
                self._pass_over(index, str(refusal))
                continue
            except Transient:
                self._started = (index, self._monotonic(), False)
                raise
            self._started = (index, self._monotonic(), True)
            passed, self._refusals, self._conflicts = self._reasons(), {}, {}
            note = f"{name} was started instead of {passed}" if passed else accepted.note
            return Accepted(accepted.request_id, note)
        passed, self._refusals, self._avoid_until = self._reasons(), {}, {}
        gone = all(state is Observed.ABSENT for state in states)
        kind = NotFound if gone else NoCapacity
        raise kind(f"none of the {len(self._names)} candidates can be started: {passed}")

    def stop(self) -> Accepted:
        """Stop every candidate that is on.

        Raises:
            Conflict: time ran out before all were stopped.
            ProviderError: a candidate could not be stopped; the others were.
        """
        deadline = self._monotonic() + self.call_timeout
        with self._calling:
            seen = self._look()
            self._started, self._refusals = None, {}
            accepted = self._stop([i for i, one in enumerate(seen) if one.state in _ON], deadline)
            if accepted is None:
                for one in seen:
                    if one.error:
                        raise one.error
            return accepted or Accepted()

    def _stop(self, indices: Sequence[int], deadline: float) -> Accepted | None:
        accepted, problem = None, None
        for index in indices:
            provider = self._providers[index]
            if self._monotonic() + provider.call_timeout > deadline:
                raise Conflict("the cloud answers slowly; the other candidates are stopped next")
            try:
                accepted = provider.stop()
            except ProviderError as error:  # the others are stopped all the same
                problem = error
            except (Exception, SystemExit) as broken:
                log.exception("a candidate's provider broke")
                problem = ProviderError(f"its provider broke: {in_words(broken)}")
        if problem is not None:
            raise problem
        return accepted

    def _look(self) -> list[_Seen]:
        def look(provider: Provider) -> _Seen:
            try:
                return _Seen(checked(provider.describe()))
            except ProviderError as error:
                return _Seen(Observation(Observed.UNKNOWN, reason=str(error)), error)
            except (Exception, SystemExit) as broken:  # a third party's may raise anything
                log.exception("a candidate's provider broke")
                problem = ProviderError(f"its provider broke: {in_words(broken)}")
                return _Seen(Observation(Observed.UNKNOWN, reason=str(problem)), problem)

        # In parallel, so that candidates of one account share a call.
        with ThreadPoolExecutor(len(self._providers), thread_name_prefix="look") as pool:
            return self._without_foreign(list(pool.map(look, self._providers)))

    def _without_foreign(self, seen: list[_Seen]) -> list[_Seen]:
        """Return the candidates of other deployments as absent, if another one is surely ours.

        Whether they are on is not our concern: they hold up neither a start nor the end of a stop.
        """
        if not any(one.at.claim for one in seen if one.error is None):
            return seen
        return [
            _Seen(Observation(Observed.ABSENT, reason=str(one.error)))
            if isinstance(one.error, Claimed) and index != self._serves
            else one
            for index, one in enumerate(seen)
        ]

    def _speaker(self, seen: Sequence[_Seen]) -> int:
        """Return the index of the candidate whose state is that of the GPU."""

        def weight(index: int) -> tuple[bool, int, int]:
            one = seen[index]
            known = index == self._serves or one.at.instance_id == self._serving
            serves = known and (one.state in _ON or (one.error and index == self._serves))
            return bool(serves), _RANK.index(one.state), -index

        return max(range(len(seen)), key=weight)

    def _order(self) -> list[int]:
        """Return the candidates not yet passed over, those to avoid last."""
        now = self._monotonic()
        left = [index for index in range(len(self._providers)) if index not in self._refusals]
        return sorted(left, key=lambda index: self._avoid_until.get(index, 0.0) > now)

    def _begin_round(self, seen: Sequence[_Seen]) -> None:
        """Forget the refusals of an abandoned round, and note a late refusal.

        EC2 may accept a start and find some seconds later that it has no such machine:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html.

        Raises:
            Conflict: a candidate may be starting and not show it yet.
        """
        now = self._monotonic()
        old = now - 2 * self.call_timeout
        self._refusals = {i: one for i, one in self._refusals.items() if one[0] > old}
        if self._started is None:
            return
        index, at, accepted = self._started
        if now - at < SETTLE_SECONDS:
            raise Conflict(f"{self._names[index]} was started {now - at:.0f} s ago")
        self._started = None
        if accepted and now - at < AVOID_SECONDS:
            self._pass_over(
                index, seen[index].at.reason or "it stopped again right after its start"
            )
            self._avoid_until[index] = now + AVOID_SECONDS

    def _lasts(self, index: int) -> bool:
        """Return whether the candidate has refused its start for its state for too long.

        EC2 refuses that of a spot instance for a moment after a stop, and for good once its
        request was cancelled.
        """
        now = self._monotonic()
        first, last = self._conflicts.get(index, (now, now))
        if now - last > CONFLICT_SECONDS:
            first = now  # that was another time
        self._conflicts[index] = first, now
        return now - first >= CONFLICT_SECONDS

    def _pass_over(self, index: int, why: str) -> None:
        self._refusals[index] = (self._monotonic(), why)

    def _reasons(self) -> str:
        return "; ".join(f"{self._names[i]}: {why}" for i, (_, why) in self._refusals.items())
