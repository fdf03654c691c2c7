"""What each cloud offers to administrators: create, discover, release."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qwenctl.clouds.base import ProviderError
from qwenctl.core.lifecycle import Observed

__all__ = [
    "TOKEN_MISMATCH",
    "Existing",
    "Found",
    "Maker",
    "Order",
    "Price",
    "client_token",
    "expect_dry_run",
    "instance_name",
    "tags_of",
]


@dataclass(frozen=True)
class Found:
    """What the cloud says about an instance, as far as the configuration cares."""

    cloud: str
    type: str
    market: str
    """``pay-as-you-go``, ``subscription``, ``spot``, …"""
    addresses: dict[str, str]
    """``private``, ``public`` and ``eip``, those that there are."""
    settings: dict[str, Any]
    """The cloud's own table."""
    price: float | None = None
    """Per hour."""
    currency: str = ""
    warnings: tuple[str, ...] = ()


def tags_of(deployment: str, gpu: str) -> dict[str, str]:
    """The tags by which an instance is known as made by us for this GPU."""
    return {"qwenctl:deployment": deployment, "qwenctl:gpu": gpu}


def client_token(deployment: str, gpu: str, generation: int) -> str:
    """What makes a repeated call create nothing, at most 64 characters.

    The template is deliberately not part of it: a call repeated after the template was edited is
    refused by the cloud, where another token would make a second instance.
    """
    text = "\n".join((deployment, gpu, str(generation)))
    return f"qwenctl-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def instance_name(tags: Mapping[str, str]) -> str:
    return f"qwenctl-{tags['qwenctl:deployment']}-{tags['qwenctl:gpu']}"


_DRY_RUN = "DryRunOperation"
TOKEN_MISMATCH = "IdempotentParameterMismatch"


@dataclass(frozen=True)
class Order:
    """What is to be created, the cloud's part aside."""

    deployment: str
    gpu: str
    generation: int
    user_data: str

    @property
    def tags(self) -> dict[str, str]:
        return tags_of(self.deployment, self.gpu)

    @property
    def token(self) -> str:
        return client_token(self.deployment, self.gpu, self.generation)


@dataclass(frozen=True)
class Existing:
    """An instance that there is."""

    id: str
    state: Observed
    tags: Mapping[str, str]
    type: str = ""
    reason: str = ""
    """Why it is in this state, as far as the cloud says."""
    spot_request: str = ""
    """EC2's id of the request that it belongs to."""


@dataclass(frozen=True)
class Price:
    """What an hour costs while the instance runs."""

    per_hour: float | None
    currency: str = ""
    note: str = ""
    """What it is for, or why there is none."""


class Maker(Protocol):
    """One cloud, for one template. Every call raises `ProviderError`."""

    order: Order

    def find(self) -> list[Existing]:
        """The instances that carry our tags and are not gone."""
        ...

    def look(self, instance_id: str) -> Existing | None:
        """That instance; None if there is none."""
        ...

    def price(self) -> Price: ...

    def check(self) -> None:
        """Ask the cloud whether it would create the instance; return if so."""
        ...

    def run(self) -> str:
        """Have it created; its id. The same call again creates none."""
        ...

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        """Ask the cloud whether it would delete that one; return if so."""
        ...

    def delete(self, existing: Existing, *, force: bool) -> None:
        """Delete it for good, with its system disk; ``force``: although it runs."""
        ...


def expect_dry_run(call: Any) -> None:
    """Make the call with ``DryRun``, whose success is an error."""
    try:
        call()
    except ProviderError as error:
        if error.cloud_code != _DRY_RUN:
            raise
