"""What the agent asks of a runtime: processes today, containers by the same verbs."""

from __future__ import annotations

from typing import Protocol

from qwenctl.wire import Progress, Service

__all__ = ["Instance", "Output", "Runtime", "StartFailed"]


class StartFailed(Exception):
    """The service could not be started at all; the text says why, for a person."""


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
    ========  ==========================  ==========================
    """

    @property
    def base_url(self) -> str:
        """Where its port is reached from here, without a path."""

    def wait(self) -> str:
        """Block until nothing of the service is left; how it ended, such as ``exit code 1``."""

    def stop(self, timeout: float) -> None:
        """Ask it to end and, ``timeout`` seconds later, kill it. Does not wait for the end."""


class Runtime(Protocol):
    """Starts services of one kind."""

    def start(self, service: Service, output: Output) -> Instance:
        """Start the service; may take long (an image to pull) and then reports progress.

        Raises:
            StartFailed: it cannot be started as it is described.
        """
