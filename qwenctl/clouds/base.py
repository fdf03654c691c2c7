"""The interface of a provider, and the errors by which a cloud refuses a call.

A provider is one instance in one cloud account. It performs and reports; it decides nothing
(`qwenctl.core.lifecycle` does) and remembers nothing between two calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from qwenctl.core import failures
from qwenctl.core.address import check_host
from qwenctl.core.phase import Observed
from qwenctl.core.words import OffBill
from qwenctl.lib.redaction import redacted
from qwenctl.lib.settings_types import Table
from qwenctl.lib.text import escape_control
from qwenctl.protocol.messages import Spec


class ProviderSettings(Table):
    """The base class of a provider's settings."""

    on_this_machine: ClassVar[bool] = False
    """The instances are processes of this machine: loopback addresses reach them."""
    sample: ClassVar[str] = ""
    """The TOML table that `qwenctl init` writes; ``{name}`` stands for the GPU's name."""

    @property
    def off_bill(self) -> OffBill:
        """What is billed while the instance is off."""
        return "other"

    @property
    def instance(self) -> str:
        """The instance that the settings name; empty if they name none."""
        return str(getattr(self, "instance_id", ""))

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells the instance from any other: equal identities name one instance."""
        return self.instance, *(str(getattr(self, key, "")) for key in _PLACE)


_PLACE = ("region", "profile", "endpoint", "endpoint_url")
"""Settings that say where, and in which account, an instance is looked for."""


@dataclass(frozen=True)
class Context:
    """What a provider knows about its GPU beside its own settings."""

    gpu: str
    """The GPU's name."""
    deployment: str
    state_path: Path
    """Where the deployment keeps files."""
    node_urls: tuple[str, ...]
    """Where nodes find the proxies."""
    read_secret: Callable[[], str]
    """Read the node secret; it is made at the first call if it may be."""
    secret_file: Path | None
    """The file of the node secret; None if the configuration holds the secret itself."""
    address: str
    """Where the proxy reaches the node, if the configuration says so."""
    agent: bool
    """Whether an agent runs on the instance."""
    spec: Spec
    """What the node should run."""
    program: tuple[str, ...]
    """The first service's command."""
    dead_man: float
    """Seconds without contact until the node stops itself."""


@dataclass(frozen=True)
class Observation:
    """The state of an instance as the cloud reports it."""

    state: Observed
    instance_id: str = ""
    address: str = ""
    """Where the proxy reaches the node, a host name or IP; empty while there is none."""
    reason: str = ""
    """The cloud's reason for the state, if it gives one."""
    surplus: bool = False
    """Another instance of the same GPU is on, too; see `MultiInstanceProvider`."""
    claim: str = field(default="", compare=False)
    """The value of its tag `qwenctl.core.claims.TAG`."""
    kept_address: str = field(default="", compare=False)
    """The address that it has whenever it runs, such as a private IP; empty if that changes."""


def checked(seen: object) -> Observation:
    """Return what ``describe`` of a third party's provider returned, if it is an observation.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(seen, Observation):
        raise TypeError("describe() returned no Observation")
    if not isinstance(seen.state, Observed):
        raise TypeError("describe() returned an Observation whose state is no Observed")
    return seen


def usable_address(text: object) -> str:
    """Return an address of a cloud's answer if it is a host name or an IP address, else nothing."""
    try:
        return check_host(text) if isinstance(text, str) and text else ""
    except ValueError:
        return ""


@dataclass(frozen=True)
class Accepted:
    """The result of a call that the cloud accepted, or that had nothing to do."""

    request_id: str = ""
    """The cloud's id of the call; empty if none was made."""
    note: str = ""
    """A remark for people, such as why another candidate was started."""


@runtime_checkable
class Provider(Protocol):
    """One instance that can be looked at, started and stopped.

    ``call_timeout`` bounds one call in seconds, the SDK's retries included: the controller makes a
    call only while its lock is sure to outlive it
    (docs/architecture.md#why-nothing-is-started-twice). ``observe_interval`` is how often, in
    seconds, it makes sense to look while the instance is changing.

    ==========  ==================================  ==========================================
    call        in state stopped                    in any other state
    ==========  ==================================  ==========================================
    describe    reads, never changes                reads; ``absent`` when there is no instance
    start       accepted: starting, then running    starting, running: success, nothing is
                                                    done; stopping: raises `Conflict`
    stop        success, nothing is done            running: accepted; starting: may raise
                                                    `Conflict`; stopping: success
    ==========  ==================================  ==========================================

    `start` and `stop` return as soon as the cloud has accepted; they do not wait for the new state.
    Each raises a `ProviderError` subclass.
    """

    call_timeout: float
    observe_interval: float

    def describe(self) -> Observation: ...

    def start(self) -> Accepted: ...

    def stop(self) -> Accepted: ...


@runtime_checkable
class MultiInstanceProvider(Protocol):
    """A provider of several instances for one GPU, of which one serves."""

    def serving(self, instance_id: str) -> None:
        """Name the instance that served last, before each `Provider.describe`."""

    def avoid(self) -> None:
        """Try the instance that served last after the others for a while.

        The cloud reclaims it again and again.
        """

    def stop_surplus(self) -> None:
        """Stop the other instances that are on.

        Raises:
            Conflict: an instance is starting, and can be stopped once it runs.
            ProviderError: an instance could not be stopped.
        """


class ProviderError(Exception):
    """A refusal by the cloud. The text is one sentence for people, without secrets.

    ``code`` is stable and becomes the failure code; ``cloud_code`` and ``request_id`` are the
    cloud's own, for users who ask the cloud's support.
    """

    code: ClassVar[str] = failures.PROVIDER_ERROR
    about_account: bool = False
    """The same is refused for every instance of the account, as with a wrong key."""

    def __init__(self, message: str, *, cloud_code: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.cloud_code = _word(cloud_code)
        self.request_id = _word(request_id)

    def __str__(self) -> str:
        extra = ", ".join(
            part
            for part in (self.cloud_code, f"request {self.request_id}" if self.request_id else "")
            if part
        )
        text = super().__str__()
        return f"{text} ({extra})" if extra else text


def _word(text: str) -> str:
    """Return a cloud's code or id on one line, without possible secrets."""
    return " ".join(redacted(escape_control(text, " "), mask="…").split())[:100]


class NoCapacity(ProviderError):
    """Raised by `start`: no such machine is free. Retried with backoff while wanted."""

    code = failures.NO_CAPACITY


class Throttled(ProviderError):
    """Raised by any call: too many calls. Retried with backoff; never at once."""

    code = failures.THROTTLED


class Denied(ProviderError):
    """Raised by any call: rights, credentials or account standing. People must act."""

    code = failures.DENIED


class NotFound(ProviderError):
    """Raised by `start` and `stop`: no such instance (`describe`: ``absent``)."""

    code = failures.NOT_FOUND


class Conflict(ProviderError):
    """Raised by `start` and `stop`: not in this state. The controller looks again."""

    code = failures.CONFLICT


class Transient(ProviderError):
    """Raised by any call: time-out, cut connection, 5xx. It may have been accepted."""

    code = failures.TRANSIENT


DRY_RUN_PASSED = "DryRunOperation"
"""The error code by which ECS and EC2 say that a call with ``DryRun`` would have been accepted:
https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-runinstances,
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html."""


def expect_dry_run(call: Callable[[], Any]) -> None:
    """Make a call with ``DryRun``, whose success is an error."""
    try:
        call()
    except ProviderError as error:
        if error.cloud_code != DRY_RUN_PASSED:
            raise
