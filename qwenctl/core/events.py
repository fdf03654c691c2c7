"""Events of a GPU's history, and how they are stored in its Redis stream.

A stored event is a flat map of strings: ``time`` (milliseconds), ``kind``, ``v`` (the version of
the format; none: 1) and the fields of its kind. The Lua scripts write most of them; a test compares.
An event of a newer version is read as far as it is understood, and keeps all its fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase

VERSION = 1
"""Version of the format that is written; ``prelude.lua`` has it too."""


class EventKind(str, Enum):
    """The kinds of events. The values are stored and shown; they never change."""

    TRANSITION = "transition"  # from one phase to another
    CALL = "call"  # the cloud was called
    LEASE = "lease"  # the GPU is needed
    DOWN = "down"  # all leases were dropped
    BLOCK = "block"
    UNBLOCK = "unblock"
    HELLO = "hello"  # the agent of a new boot reported
    NODE = "node"  # the node's state or progress changed
    INTERRUPTION = "interruption"  # the cloud takes the instance back
    OVERDUE = "overdue"  # nothing has been heard from the agent of a boot
    COMMAND = "command"  # the node was given something to do
    CLOCK = "clock"  # the store's clock stepped, and all times were moved along
    FIRST_BYTE = "first-byte"  # the first answer after a start went to a visitor

    __str__ = str.__str__  # the same in an f-string, whatever the version of Python


FIELDS: dict[EventKind, frozenset[str]] = {
    EventKind.TRANSITION: frozenset({"from", "to", "cause", "actor", "epoch", "failure"}),
    EventKind.CALL: frozenset({"verb", "actor", "epoch", "request_id", "error", "note"}),
    EventKind.LEASE: frozenset({"name", "cause", "actor", "expiry"}),
    EventKind.DOWN: frozenset({"actor", "cause", "cut", "dropped"}),
    EventKind.BLOCK: frozenset({"name", "cause", "actor", "expiry"}),
    EventKind.UNBLOCK: frozenset({"name", "actor"}),
    EventKind.HELLO: frozenset({"actor", "boot_id", "start_seq", "version"}),
    EventKind.NODE: frozenset({"actor", "state", "progress", "error"}),
    EventKind.INTERRUPTION: frozenset({"actor", "action", "ends"}),
    EventKind.OVERDUE: frozenset({"actor", "error"}),
    EventKind.COMMAND: frozenset({"verb", "actor"}),
    EventKind.CLOCK: frozenset({"actor", "step"}),
    EventKind.FIRST_BYTE: frozenset({"actor", "start_seq"}),
}
"""The fields of each kind, as they are stored."""


class _Text:
    """A field of an event; empty if it is not stored."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, event: Event, owner: type) -> str:
        return event.fields.get(self._name, "")


@dataclass(frozen=True)
class Event:
    """An event of the history."""

    id: str
    time: float
    kind: EventKind | str
    """A plain string: a kind that this version does not know."""
    fields: Mapping[str, str]
    """All fields of the kind as they are stored, unknown ones too."""
    format: int = VERSION
    """Version of the format that it was written in."""

    action = _Text()
    actor = _Text()
    boot_id = _Text()
    cause = _Text()
    error = _Text()
    name = _Text()
    note = _Text()
    progress = _Text()
    request_id = _Text()
    state = _Text()
    verb = _Text()

    @property
    def source(self) -> Phase | None:
        """The phase that a transition left; None if this version does not know it."""
        return self._phase("from")

    @property
    def to(self) -> Phase | None:
        """The phase that a transition led to; None if this version does not know it."""
        return self._phase("to")

    def _phase(self, field: str) -> Phase | None:
        if self.kind is EventKind.TRANSITION:
            with contextlib.suppress(ValueError):
                return Phase(self.fields.get(field))
        return None

    @property
    def failure(self) -> Failure | None:
        """The failure that goes with a transition."""
        try:
            return Failure.decode(self.fields.get("failure", ""))
        except ValueError:
            return None

    @property
    def force_stop(self) -> bool:
        """Whether a `down` ended running work too."""
        return self.fields.get("cut") == "1"

    @property
    def expiry(self) -> float:
        """Until when a lease or block lasts; ``inf`` without an end."""
        try:
            return float(self.fields["expiry"]) / 1000
        except (KeyError, ValueError):
            return inf


def encode(kind: EventKind, **fields: str) -> dict[str, str]:
    """Return an event of now as it is stored, but for its time.

    Raises:
        ValueError: the kind has no such field; a mistake in the code.
    """
    if unknown := fields.keys() - FIELDS[kind]:
        raise ValueError(f"no field of {kind.value!r}: {', '.join(sorted(unknown))}")
    return {"kind": kind.value, "v": str(VERSION), **fields}


def decode(identity: str, stored: Mapping[str, str]) -> Event:
    """Read a stored event of any version."""
    fields = dict(stored)
    kind, version = fields.pop("kind", ""), fields.pop("v", "1")
    try:
        time = float(fields.pop("time", "")) / 1000
    except ValueError:
        time = float(identity.split("-")[0]) / 1000
    return Event(
        identity,
        time,
        _KINDS.get(kind, kind),
        fields,
        int(version) if version.isdecimal() else VERSION,
    )


_KINDS = {kind.value: kind for kind in EventKind}
