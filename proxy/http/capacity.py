"""Bound the connections of clients, so that descriptors are left for everything else.

A connection without a request in work is closed, the oldest first, where another one needs its
place: idle connections, and heads that do not arrive, keep nobody out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from functools import lru_cache
from typing import Protocol

from qwenctl.lib.settings_types import is_loopback
from qwenctl.protocol.messages import HELLO_PATH, REPORT_PATH

from .request import Networks

log = logging.getLogger("qwenctl.proxy")

RESERVE = 192
"""Descriptors for the store, the controllers, the threads, local instances and the nodes' messages."""

RESERVE_PER_GPU = 4
"""Further ones for each GPU: its controller's and its holder's connections, and calls to its cloud."""

PER_CLIENT = 2
"""A forwarded request has a connection to the client and one to the node."""

MOST = 1 << 15
"""The most connections of clients; each takes some 20 KiB of memory."""

MOST_FROM_ONE = 2048
"""The most connections from one address, or one IPv6 network of 64 bits, which is one customer's."""

SPARE = 32
"""How many connections without a request, and how many of nodes and probes, there is always room for."""

URGENT = frozenset(
    path.encode() for path in (HELLO_PATH, REPORT_PATH, "/_qwenctl/healthz", "/_qwenctl/readyz")
)
"""Requests that are served also beyond the bound of connections: of nodes and probes."""

CHECK = 1.0
"""Seconds between two looks at what stands still."""

LOG_INTERVAL = 10.0
"""How often refused connections are logged, in seconds."""

FULL = (503, "too_many_connections", "this proxy serves as many clients as it can; come again")
FULL_FROM_ONE = (429, "too_many_connections", "too many connections come from this address")
RETRY_AFTER = 5
"""When a refused client may come again, in seconds."""

Refusal = tuple[int, str, str]
"""Status, code and detail of a problem."""


class Connection(Protocol):
    """A connection of a client; used as a key by its identity."""

    def drop(self) -> None:
        """Close it without a word."""

    def check(self, now: float) -> None:
        """Look for a body or a reader that stands still."""


def bearable(descriptors: int, gpus: int) -> int:
    """Return how many connections of clients a limit of open files bears."""
    reserve = min(RESERVE + RESERVE_PER_GPU * gpus, descriptors // 2)
    return max(8, min(MOST, (descriptors - reserve) // PER_CLIENT))


class Capacity:
    """The connections of one process. Used on the event loop only.

    Args:
        most: how many there may be.
        trusted: reverse proxies, which speak for many clients. Loopback addresses may be ones, too.
    """

    def __init__(self, most: int = MOST, trusted: Networks = ()) -> None:
        self.most = most
        self.most_from_one = max(8, min(MOST_FROM_ONE, most // 2))
        self._trusted = trusted
        self._idle: dict[Connection, None] = {}
        """Connections without a request in work, the oldest first."""
        self._busy: dict[Connection, None] = {}
        self._urgent: dict[Connection, None] = {}
        """Busy connections beyond the bound, of nodes and probes, the oldest first."""
        self._from: dict[str, dict[Connection, None]] = {}
        self._network: dict[Connection, str] = {}
        self._logged_at = float("-inf")
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy) + len(self._urgent)

    def add(self, connection: Connection, peer: str) -> Refusal | None:
        """Count a new connection; return why it is to be refused, or None."""
        self._start()
        refusal = None
        if network := _network(peer, self._trusted):
            same = self._from.setdefault(network, {})
            if len(same) >= self.most_from_one:
                refusal = self._make_room_among(same, network)
            same[connection] = None
            self._network[connection] = network
        self._idle[connection] = None
        while len(self) > self.most and len(self._idle) > SPARE:
            self._drop(next(iter(self._idle)))
        return refusal

    def _make_room_among(self, same: dict[Connection, None], network: str) -> Refusal | None:
        idle = next((one for one in same if one in self._idle), None)
        if idle is None:
            self._log("%s has %d connections", network, len(same))
            return FULL_FROM_ONE
        self._drop(idle)
        return None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        for group in (self._idle, self._busy, self._urgent):
            group.pop(connection, None)
        if network := self._network.pop(connection, ""):
            same = self._from[network]
            del same[connection]
            if not same:
                del self._from[network]

    def begin(self, connection: Connection, target: bytes = b"") -> Refusal | None:
        """Count a request in work; return why it is to be refused, or None.

        ``target``: the request's, as sent. For nodes and probes there is always room.
        """
        if connection not in self._idle:
            return None  # a pipelined request, or a connection that is being closed
        if len(self._busy) < self.most:
            del self._idle[connection]
            self._busy[connection] = None
            return None
        if target.partition(b"?")[0] not in URGENT:
            self._log("all %d connections have a request in work", self.most)
            return FULL
        while len(self._urgent) >= SPARE:
            self._drop(next(iter(self._urgent)))
        del self._idle[connection]
        self._urgent[connection] = None
        return None

    def end(self, connection: Connection) -> None:
        """Count a connection as idle, because its last request has been answered."""
        group = self._busy if connection in self._busy else self._urgent
        if connection in group:
            del group[connection]
            self._idle[connection] = None

    def replace(self, connection: Connection, successor: Connection) -> None:
        """Count a connection as another object, which has taken it over for another protocol."""
        for group in (self._idle, self._busy, self._urgent):
            if group.pop(connection, self) is None:
                group[successor] = None
        if network := self._network.pop(connection, ""):
            self._network[successor] = network
            del self._from[network][connection]
            self._from[network][successor] = None

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(CHECK, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        for connection in (*self._busy, *self._urgent, *self._idle):
            connection.check(now)
        if len(self):
            asyncio.get_running_loop().call_later(CHECK, self._check)
        else:
            self._loop = None

    def _drop(self, connection: Connection) -> None:
        self.remove(connection)
        connection.drop()

    def _log(self, text: str, *arguments: object) -> None:
        if time.monotonic() - self._logged_at >= LOG_INTERVAL:
            self._logged_at = time.monotonic()
            log.warning("connections are refused: " + text, *arguments)


@lru_cache(4096)
def _network(peer: str, trusted: Networks) -> str:
    """Return the address that a bound counts for, or empty if it may speak for many clients."""
    if not peer or is_loopback(peer):
        return ""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if any(address in network for network in trusted):
        return ""
    prefix = 64 if address.version == 6 else 32
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
