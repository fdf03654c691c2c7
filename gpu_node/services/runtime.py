"""What the agent asks of a runtime; processes and containers are run by the same verbs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from qwenctl.protocol.messages import Progress, Service

__all__ = ["Instance", "Output", "Runtime", "StartFailed", "base_url_of"]


class StartFailed(Exception):
    """The service could not be started at all; the text says why, for a person.

    Args:
        final: whether trying again is in vain until a person has mended something.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Output(Protocol):
    """Where a running service's words go. Called from any thread, and never raises."""

    def line(self, text: str) -> None:
        """One line of its log."""

    def progress(self, progress: Progress) -> None:
        """How far it is."""


class Instance(Protocol):
    """A service that has been started once.

    ========  ==========================  ==========================
    call      while it runs               after it has ended
    ========  ==========================  ==========================
    wait      blocks until it ends        returns at once
    stop      asks it to end, then kills  does nothing
    detach    leaves it to itself         does nothing
    ========  ==========================  ==========================
    """

    @property
    def base_url(self) -> str:
        """Where its port is reached from here, without a path."""

    @property
    def up(self) -> bool:
        """Whether its program runs yet: before that, whoever answers on its port is another one."""

    @property
    def detail(self) -> str:
        """What it is, for people: a process, or a container with its state."""

    def wait(self) -> str:
        """Block until nothing of the service is left, or until detached; how it ended, such as
        ``exit code 1``.

        Raises:
            StartFailed: it could not be brought to run; what was made for that is of no harm.
        """

    def stop(self, timeout: float) -> None:
        """Ask it to end and, ``timeout`` seconds later, kill it. Does not wait for the end."""

    @property
    def taken_up(self) -> bool:
        """Whether it ran already, begun by an earlier agent."""

    def detach(self) -> None:
        """Leave it running for the next agent to take up; only if it outlives this one."""


class Runtime(Protocol):
    """Starts services of one kind."""

    @property
    def outlives_agent(self) -> bool:
        """Whether its services can be left running without this process."""

    def settle(self, names: Collection[str]) -> None:
        """From now on these are the services: what earlier agents left of others is to go."""

    def start(self, service: Service, output: Output) -> Instance:
        """Begin to run the service. What takes long (an image to pull) is done in the instance's
        `wait`, and reported as progress.

        Raises:
            StartFailed: it cannot be started as it is described.
        """


def base_url_of(service: Service) -> str:
    """Where the service's port is reached from this machine, without a path."""
    host = "127.0.0.1"
    container = service.container if service.runtime == "docker" else None
    if container and container.network != "host" and container.bind not in ("0.0.0.0", "::"):
        host = container.bind
    return f"http://{f'[{host}]' if ':' in host else host}:{service.port}"
