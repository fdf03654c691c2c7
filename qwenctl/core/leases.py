"""Kinds of leases and blocks, and the names they make: ``kind:rest``, such as ``pin:anna``.

A lease keeps a GPU on, a block keeps it off. The names are stored; a kind never changes its text.
The Lua scripts write the kinds of `WORK`, `REQUEST` and `ADOPTED` themselves; a test compares.
"""

from __future__ import annotations

from typing import Final, Literal

# Leases
REQUEST: Final = "request"
"""A visitor or an API client, until the idle timeout has passed."""
INFLIGHT: Final = "inflight"
"""Requests that a proxy is forwarding now."""
BUSY: Final = "busy"
"""Running work that the node reports."""
PIN: Final = "pin"
"""``qwenctl up``."""
PREWARM: Final = "prewarm"
"""A schedule that wants the GPU on."""
ADOPTED: Final = "adopted"
"""An instance found running is kept for one idle timeout."""

# Blocks
MAINTENANCE: Final = "maintenance"
"""``qwenctl block``."""
OFF_HOURS: Final = "off-hours"
"""A schedule that wants the GPU off."""
BUDGET: Final = "budget"
"""The money of a period is spent. No holder writes it yet; its name has no rest."""

LEASES = frozenset({REQUEST, INFLIGHT, BUSY, PIN, PREWARM, ADOPTED})
BLOCKS = frozenset({MAINTENANCE, OFF_HOURS, BUDGET})
WORK = frozenset({INFLIGHT, BUSY})
"""Running work, which only ``--now`` may end."""

ScheduleKind = Literal["prewarm", "off-hours"]
"""What a schedule holds: the lease `PREWARM` or the block `OFF_HOURS`."""


def parse(name: str) -> tuple[str, str]:
    """Split a name into its kind and the rest."""
    kind, _, rest = name.partition(":")
    return kind, rest


def kind_of(name: str) -> str:
    """The kind of a lease or block of this name."""
    return parse(name)[0]


def request(client: str) -> str:
    """The lease of a client."""
    return f"{REQUEST}:{client}"


def inflight(proxy: str) -> str:
    """The lease of a proxy for all its active requests."""
    return f"{INFLIGHT}:{proxy}"


def busy(node: str) -> str:
    """The lease of a node that has running work."""
    return f"{BUSY}:{node}"


def pin(user: str) -> str:
    """The lease of a user who said ``qwenctl up``."""
    return f"{PIN}:{user}"


def maintenance(user: str) -> str:
    """The block of a user who said ``qwenctl block``."""
    return f"{MAINTENANCE}:{user}"
