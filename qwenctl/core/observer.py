"""Hooks for whoever measures: metrics today, traces tomorrow."""

from __future__ import annotations


class Observer:
    """Hooks of controller and data plane; they do nothing unless overridden.

    A hook must be quick and must not raise: it runs on the event loop or under the controller's
    lock. Names in ``step``, ``decision`` and ``outcome`` are stable; seconds are wall-clock
    durations measured by a monotonic clock.
    """

    def stepped(self, gpu: str, step: str, seconds: float) -> None:
        """The controller performed one step of `qwenctl.core.lifecycle.decide`."""

    def called_cloud(self, gpu: str, action: str, outcome: str, seconds: float) -> None:
        """A call to the cloud returned; ``outcome`` is ``ok`` or the error's code."""

    def admitted(self, gpu: str, decision: str) -> None:
        """The data plane decided what to do with a request."""

    def forwarded(self, gpu: str, status: int, seconds: float) -> None:
        """An answer of the node has been forwarded to its last byte."""


NO_OBSERVER = Observer()
"""Where nobody measures."""
