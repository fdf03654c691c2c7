"""The interface of a runtime: processes and containers are run by the same verbs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from qwenctl.lib.private_file import read_regular
from qwenctl.protocol.messages import Progress, Service


class StartFailed(Exception):
    """The service could not be started at all; the text says why, for a person.

    Args:
        final: whether trying again is in vain until a person has mended something.
    """

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Output(Protocol):
    """Takes a running service's output. Called from any thread, and never raises."""

    def line(self, text: str) -> None:
        """Take a line of its log."""

    def progress(self, progress: Progress) -> None:
        """Take how far it is."""


class ServiceRun(Protocol):
    """One run of a service, from its start to its end.

    ========  ==========================  ==========================
    call      while it runs               after it has ended
    ========  ==========================  ==========================
    wait      blocks until it ends        returns at once
    stop      asks it to end, then kills  does nothing
    detach    leaves it to itself         does nothing
    ========  ==========================  ==========================
    """

    base_url: str
    """Where its port is reached from here, without a path."""
    up: bool
    """Whether its program runs yet: before that, whatever answers on its port is another program."""
    detail: str
    """What runs, for people: a process, or a container with its state."""
    taken_up: bool
    """Whether an earlier agent began it."""

    def wait(self) -> str:
        """Block until nothing of the service is left, or until detached. Return how it ended, such
        as ``exit code 1``.

        Raises:
            StartFailed: it could not be brought to run; what was made for that does no harm.
        """

    def stop(self, timeout: float) -> None:
        """Ask it to end and, ``timeout`` seconds later, kill it. Does not wait for the end."""

    def detach(self) -> None:
        """Leave it running for the next agent to take up; only if it outlives this one."""


class Runtime(Protocol):
    """Starts services of one kind."""

    outlives_agent: bool
    """Whether its services can be left running without this process."""

    def settle(self, names: Collection[str]) -> None:
        """Let only these services stay: what earlier agents left of others is removed."""

    def start(self, service: Service, output: Output) -> ServiceRun:
        """Begin to run the service. What takes long (an image to pull) is done in `wait` of the
        returned run, and reported as progress.

        Raises:
            StartFailed: it cannot be started as it is described.
        """


def base_url_of(service: Service) -> str:
    """Return where the service's port is reached from this machine, without a path."""
    host = "127.0.0.1"
    container = service.container if service.runtime == "docker" else None
    if container and container.network != "host" and container.bind not in ("0.0.0.0", "::"):
        host = container.bind
    return f"http://{f'[{host}]' if ':' in host else host}:{service.port}"


def service_environment(service: Service) -> dict[str, str]:
    """Return the variables of the service: those of its spec, over those of the file it names.

    The file has one ``KEY=value`` a line, as ``docker run --env-file`` has it: blank lines and lines
    that begin with ``#`` do not count, and quotes are part of the value.

    Raises:
        StartFailed: the file cannot be read, or a line of it is none of these.
    """
    found: dict[str, str] = {}
    if service.env_file:
        try:
            lines = read_regular(Path(service.env_file)).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise StartFailed(f"env_file: cannot read {service.env_file}: {reason}") from None
        for number, line in enumerate(lines, 1):
            name, equals, value = line.strip().partition("=")
            if not name or name.startswith("#"):
                continue
            if not equals or not name.replace("_", "a").isalnum():
                # The line itself is not shown: it may be a secret.
                raise StartFailed(f"env_file: {service.env_file}:{number} is not KEY=value")
            found[name] = value
    return {**found, **service.env}
