"""Kinds and names of leases and blocks: ``kind:rest``, such as ``pin:anna``.

A lease keeps a GPU on, a block keeps it off. Names are stored; a kind never changes. Lua scripts
spell out the kinds of `WORK`, `REQUEST`, `ADOPTED` and `FORMER`; a test compares.
"""

from __future__ import annotations

from typing import Final, Literal

# Leases
REQUEST: Final = "request"
"""A visitor or an API client, until the idle timeout has passed."""
INFLIGHT: Final = "inflight"
"""Requests that a proxy is forwarding."""
BUSY: Final = "busy"
"""Running work that the node reports."""
PIN: Final = "pin"
"""``qwenctl up``."""
PREWARM: Final = "prewarm"
"""A schedule that keeps the GPU on."""
ADOPTED: Final = "adopted"
"""An instance that was found running, for one idle timeout."""

# Blocks
MAINTENANCE: Final = "maintenance"
"""``qwenctl block``."""
OFF_HOURS: Final = "off-hours"
"""A schedule that keeps the GPU off."""
FORMER: Final = "former"
"""An instance that the settings no longer name is on: it is stopped before anything is started."""
BUDGET: Final = "budget"
"""The budget of a period is spent. No holder writes it yet; its name has no rest."""

LEASES = frozenset({REQUEST, INFLIGHT, BUSY, PIN, PREWARM, ADOPTED})
BLOCKS = frozenset({MAINTENANCE, OFF_HOURS, FORMER, BUDGET})
WORK = frozenset({INFLIGHT, BUSY})
"""Running work, which only ``--now`` may end."""

ScheduleKind = Literal["prewarm", "off-hours"]
"""What a schedule holds: the lease `PREWARM` or the block `OFF_HOURS`."""


def parse(name: str) -> tuple[str, str]:
    """Return a name's kind and the rest."""
    kind, _, rest = name.partition(":")
    return kind, rest


def kind_of(name: str) -> str:
    """Return a name's kind."""
    return parse(name)[0]


def request(client: str) -> str:
    """Return the name of a client's lease."""
    return f"{REQUEST}:{client}"


def visitor(rest: str) -> str:
    """Return the visitor's name in the rest of a lease `REQUEST`."""
    client = rest.partition("#")[0]
    kind, found, name = client.partition(":")
    return name if found and kind in ("key", "member", "browser") else client


def inflight(proxy: str) -> str:
    """Return the name of a proxy's lease for all its active requests."""
    return f"{INFLIGHT}:{proxy}"


def busy(node: str) -> str:
    """Return the name of a node's lease for running work."""
    return f"{BUSY}:{node}"


def pin(user: str) -> str:
    """Return the name of a user's lease by ``qwenctl up``."""
    return f"{PIN}:{user}"


def maintenance(user: str) -> str:
    """Return the name of a user's block by ``qwenctl block``."""
    return f"{MAINTENANCE}:{user}"


def former(instance: str) -> str:
    """Return the name of the block while an instance of earlier settings is wound down."""
    return f"{FORMER}:{instance}"
