"""Claims: which deployment an instance belongs to, written on the instance itself.

A claim is a tag that every deployment of the account sees, so that no two of them start and stop
one instance. Its times are Unix seconds of the host that wrote it: they are compared in hours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwenctl.lib.text import duration

TAG = "qwenctl:claim"
"""The tag's key, or the name of the file that stands for it."""

REFRESH_SECONDS = 3600.0
"""How old a claim gets before its deployment renews it."""

STALE_SECONDS = 24 * 3600.0
"""A claim that has not been renewed for so long does not hold an instance that is off."""

ABANDONED_SECONDS = 3 * REFRESH_SECONDS
"""Nor does one by our own name, whether the instance is on or off: it is our own from before the store
and the state directory were lost, or else a deployment that is gone."""


@dataclass(frozen=True)
class Claim:
    """A deployment's claim of an instance."""

    owner: str
    """The deployment's random id; see `qwenctl.store.deployment_id`."""
    name: str
    """``deployment/gpu``, for people."""
    since: float
    seen: float
    """When it was renewed last."""

    def encode(self) -> str:
        """Return the tag's value: 128 characters that both clouds allow in one."""
        return f"{self.owner} {self.name[:80]} {self.since:.0f} {self.seen:.0f}"

    @classmethod
    def decode(cls, text: str) -> Claim | None:
        """Return the claim of a tag's value; None if it is none."""
        try:
            owner, name, since, seen = text.split(" ")
            return cls(owner, name, float(since), float(seen))
        except ValueError:
            return None

    def holds(self, now: float, *, off: bool, name: str) -> bool:
        """Whether it keeps another deployment of that name (``deployment/gpu``) away."""
        age = now - self.seen
        if name == self.name and age >= ABANDONED_SECONDS:
            return False
        return not off or age < STALE_SECONDS

    def renewed(self, now: float) -> Claim:
        return replace(self, seen=now)

    def words(self, instance: str, now: float) -> str:
        """Say to a person of another deployment whose instance it is, and what to do."""
        since = duration(max(0.0, now - self.since))
        deployment, _, gpu = self.name.partition("/")
        return (
            f"{instance} belongs to another deployment, {deployment!r} (gpu.{gpu}, for {since}), "
            "and is neither started nor stopped here; to take it over, end that one and remove the "
            f"instance's tag {TAG}"
        )
