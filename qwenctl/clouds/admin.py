"""The interface of a cloud for administrators: import, provision, create, release."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwenctl.clouds import registry
from qwenctl.clouds.permissions import Document, Instance
from qwenctl.clouds.plan import Change, Plan
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError


@dataclass(frozen=True)
class Found:
    """An instance as the cloud describes it, reduced to what the configuration needs."""

    cloud: str
    type: str
    market: str
    """``pay-as-you-go``, ``subscription``, ``spot``, …"""
    addresses: dict[str, str]
    """Those of ``private``, ``public`` and ``eip`` that the instance has."""
    settings: dict[str, Any]
    """Keys of the provider's table."""
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
    """The form of a valid value, for the error about another; empty: the table's own error."""
    hidden: bool = False


@dataclass(frozen=True)
class Importer:
    """A provider's part of `qwenctl import`."""

    cloud: str
    """Its name for people."""
    help: str
    region: str
    """A region, as an example; likewise ``instance_id``."""
    instance_id: str
    read: Callable[[Any], Found]
    """Read the instance that the provider's settings name. Raises `ProviderError`, `UserError`."""
    options: Sequence[ImportOption] = ()


TOKEN_MISMATCH = "IdempotentParameterMismatch"


@dataclass(frozen=True)
class LaunchRequest:
    """The parameters of a new instance that do not depend on the cloud."""

    deployment: str
    gpu: str
    generation: int
    user_data: str

    @property
    def tags(self) -> dict[str, str]:
        """The tags that mark an instance as created by qwenctl for this GPU."""
        return {"qwenctl:deployment": self.deployment, "qwenctl:gpu": self.gpu}

    @property
    def name(self) -> str:
        return f"qwenctl-{self.deployment}-{self.gpu}"

    @property
    def token(self) -> str:
        """The client token of at most 64 characters: a repeated call creates nothing.

        The template is not part of it: the cloud refuses a call that is repeated after the template
        was edited, where another token would create a second instance.
        """
        text = "\n".join((self.deployment, self.gpu, str(self.generation)))
        return f"qwenctl-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


@dataclass(frozen=True)
class Existing:
    """An existing instance."""

    id: str
    state: Observed
    tags: Mapping[str, str]
    type: str = ""
    reason: str = ""
    """The cloud's reason for the state, if it gives one."""
    spot_request: str = ""
    """The id of the instance's spot request on EC2."""


@dataclass(frozen=True)
class Price:
    """The price of an hour while the instance runs."""

    per_hour: float | None
    currency: str = ""
    note: str = ""
    """What the price includes, or why it is unknown."""


class InstanceCreator(Protocol):
    """Creates and deletes a template's instance. Every call raises `ProviderError`."""

    request: LaunchRequest

    def find(self) -> list[Existing]:
        """Return the existing instances that carry the request's tags."""
        ...

    def look(self, instance_id: str) -> Existing | None:
        """Return the instance; None if it does not exist."""
        ...

    def price(self) -> Price: ...

    def check(self) -> None:
        """Ask the cloud whether it would create the instance; return if so."""
        ...

    def run(self) -> str:
        """Create the instance and return its id. The same call again creates none."""
        ...

    def check_delete(self, existing: Existing, *, force: bool) -> None:
        """Ask the cloud whether it would delete the instance; return if so."""
        ...

    def delete(self, existing: Existing, *, force: bool) -> None:
        """Delete the instance and its system disk; ``force``: although it runs."""
        ...


class Admin(Protocol):
    """A cloud's part of `import`, `permissions` and `provision`: its module `admin`."""

    REQUIRED_KEYS: Sequence[str]
    """The keys that a template must set."""
    NODE_EXTRAS: str
    """The extras of qwenctl that a node needs."""
    NODE_SETTINGS: Mapping[str, Any]
    """Settings of the node's agent (`gpu_node.settings`)."""
    ROLE_NOT_NEEDED: Sequence[str]
    """Lines that say why a node needs no role; empty if it needs one."""
    IDLE_ALARM: str
    """The cloud's alarm that stops idle instances."""
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
    """Return a provider's part of the administrators' commands, or None.

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
