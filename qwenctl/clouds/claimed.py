"""A provider whose instance carries its deployment's claim (`qwenctl.core.claims`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from qwenctl.clouds.base import Accepted, Denied, Observation, Provider, ProviderError, Transient
from qwenctl.core import failures
from qwenctl.core.claims import REFRESH_SECONDS, Claim
from qwenctl.errors import StoreUnavailable

log = logging.getLogger(__name__)

RETRY_SECONDS = 600.0
"""Pause after a claim could not be written."""


@runtime_checkable
class Claimable(Protocol):
    """A provider whose `describe` reads a claim, and that can write it."""

    def claim(self, value: str) -> None:
        """Write the instance's tag `qwenctl.core.claims.TAG`.

        Raises:
            ProviderError: the cloud refuses or does not answer.
        """


@runtime_checkable
class HasCandidates(Protocol):
    """A provider of several others, such as `qwenctl.clouds.fallback.Fallback`."""

    def wrap(self, wrapper: Callable[[Provider], Provider]) -> None:
        """Replace each by its wrapper."""


class Claimed(Denied):
    """Raised by any call: the instance belongs to another deployment."""

    code = failures.CLAIMED


class ClaimedProvider:
    """A provider that leaves instances of other deployments alone, and claims its own.

    Where tags may not be written it goes on without a claim of its own; `doctor` says so.

    Args:
        inner: the provider, which is `Claimable`.
        name: ``deployment/gpu``, for people.
        owner: returns the deployment's id.
        clock: Unix time.
    """

    def __init__(
        self,
        inner: Provider,
        name: str,
        owner: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.inner = inner
        self.call_timeout = inner.call_timeout
        self.observe_interval = inner.observe_interval
        self._name, self._owner, self._clock = name, owner, clock
        self._foreign: Claimed | None = None
        self._not_before = float("-inf")

    def describe(self) -> Observation:
        """Describe the instance; claim it if nobody does, and renew a claim that gets old.

        Raises:
            Claimed: it belongs to another deployment.
            ProviderError: as the provider does.
        """
        seen = self.inner.describe()
        claim = self._ours(seen)
        now = self._clock()
        if now < self._not_before or seen.state.absent:
            return seen
        if claim is None:
            if self._write(Claim(self._id(), self._name, now, now)):
                seen = self.inner.describe()  # another deployment may have written, too
                self._ours(seen)
        elif now - claim.seen >= REFRESH_SECONDS:
            self._write(claim.renewed(now))
        return seen

    def start(self) -> Accepted:
        """Start the instance unless the last look found it to be another deployment's."""
        self._check()
        return self.inner.start()

    def stop(self) -> Accepted:
        """Stop the instance unless the last look found it to be another deployment's."""
        self._check()
        return self.inner.stop()

    def _ours(self, seen: Observation) -> Claim | None:
        """Return our claim; None if nobody holds the instance."""
        self._foreign = None
        claim = Claim.decode(seen.claim)
        if claim is None or claim.owner == self._id():
            return claim
        if not claim.holds(self._clock(), off=seen.state.gone, name=self._name):
            return None
        self._foreign = Claimed(claim.words(seen.instance_id, self._clock()))
        raise self._foreign

    def _check(self) -> None:
        if self._foreign is not None:
            raise self._foreign

    def _id(self) -> str:
        try:
            return self._owner()
        except StoreUnavailable as error:
            raise Transient(f"whose instance it is cannot be told: {error}") from None

    def _write(self, claim: Claim) -> bool:
        assert isinstance(self.inner, Claimable)
        try:
            self.inner.claim(claim.encode())
        except ProviderError as error:
            self._not_before = self._clock() + RETRY_SECONDS
            log.warning("%s: its instance cannot be tagged as ours: %s", self._name, error)
            return False
        return True


def claiming(provider: Provider, name: str, owner: Callable[[], str]) -> Provider:
    """Return the provider so that it claims its instances; as it is, if it cannot.

    Of several instances each is claimed.

    Args:
        provider: a cloud's or a third party's.
        name: ``deployment/gpu``, for people.
        owner: returns the deployment's id.
    """
    if isinstance(provider, HasCandidates):
        provider.wrap(lambda candidate: claiming(candidate, name, owner))
    elif isinstance(provider, Claimable):
        return ClaimedProvider(provider, name, owner)
    return provider
