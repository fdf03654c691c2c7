"""What each cloud offers to administrators: create, discover, release."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwenctl.clouds import registry
from qwenctl.clouds.permissions import Document, Instance
from qwenctl.clouds.plan import Change, Plan
from qwenctl.core.lifecycle import Observed
from qwenctl.errors import ConfigError

__all__ = [
    "TOKEN_MISMATCH",
    "Admin",
    "Existing",
    "Found",
    "ImportOption",
    "Importer",
    "InstanceCreator",
    "LaunchRequest",
    "Price",
    "admin_of",
    "importer_of",
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


@dataclass(frozen=True)
class ImportOption:
    """An option of `qwenctl import` that sets a key of the provider's table."""

    key: str
    metavar: str
    help: str
    form: str = ""
    """Which form its value has, for the error about another one; empty: as the table says."""
    hidden: bool = False


@dataclass(frozen=True)
class Importer:
    """A provider's part of `qwenctl import`."""

    cloud: str
    """Its name for people."""
    help: str
    region: str
    """An example, as is the next."""
    instance_id: str
    read: Callable[[Any], Found]
    """Read the instance that the provider's settings name. Raises `ProviderError`, `UserError`."""
    options: Sequence[ImportOption] = ()


TOKEN_MISMATCH = "IdempotentParameterMismatch"


@dataclass(frozen=True)
class LaunchRequest:
    """What is to be created, the cloud's part aside."""

    deployment: str
    gpu: str
    generation: int
    user_data: str

    @property
    def tags(self) -> dict[str, str]:
        """The tags that mark an instance as made by us for this GPU."""
        return {"qwenctl:deployment": self.deployment, "qwenctl:gpu": self.gpu}

    @property
    def name(self) -> str:
        return f"qwenctl-{self.deployment}-{self.gpu}"

    @property
    def token(self) -> str:
        """The client token, by which a repeated call creates nothing; at most 64 characters.

        The template is deliberately not part of it: a call repeated after the template was edited
        is refused by the cloud, where another token would make a second instance.
        """
        text = "\n".join((self.deployment, self.gpu, str(self.generation)))
        return f"qwenctl-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


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


class InstanceCreator(Protocol):
    """One cloud, for one template. Every call raises `ProviderError`."""

    request: LaunchRequest

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


class Admin(Protocol):
    """A cloud's part of `permissions` and `provision`; its file `admin` is one."""

    REQUIRED_KEYS: Sequence[str]
    """The keys of a template without which nothing can be created."""
    NODE_EXTRAS: str
    """The extras of qwenctl that a node needs."""
    NODE_SETTINGS: Mapping[str, Any]
    """Settings of the agent (`gpu_node.settings`)."""
    ROLE_NOT_NEEDED: Sequence[str]
    """Why its nodes need no role, in lines for people; empty if they need one."""
    IDLE_ALARM: str
    """An alarm of the cloud against instances that idle."""
    IMPORTER: Importer | None

    def proxy_policy(self, instances: Sequence[Instance]) -> Document: ...

    def node_policy(self, instances: Sequence[Instance]) -> Document: ...

    def node_trust(self, region: str) -> Document: ...

    def admin_policy(self, deployment: str, tables: Sequence[Any]) -> Document: ...

    def role_commands(self, instance: Instance) -> list[str]: ...

    def make_creator(
        self, settings: Any, request: LaunchRequest, *, creating: bool
    ) -> InstanceCreator: ...

    def apply(
        self, settings: Any, plan: Plan, group: str = "", *, dry_run: bool = False
    ) -> Iterator[Change]: ...


def admin_of(provider: str) -> Admin | None:
    """Return a provider's part of the commands for administrators; None if it has none.

    Raises:
        ConfigError: no such provider is installed.
    """
    found: Admin | None = registry.part(provider, "admin")
    return found


def importer_of(provider: str) -> Importer | None:
    """Return a provider's part of `qwenctl import`; None if it has none."""
    try:
        return getattr(admin_of(provider), "IMPORTER", None)
    except ConfigError:
        return None
