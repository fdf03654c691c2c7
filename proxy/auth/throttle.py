"""Limit attempts to sign in: from an address, from its network and in total, on all replicas."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from qwenctl.lib.settings_types import is_loopback
from qwenctl.store.store import Store

PER_ADDRESS = 5
PER_NETWORK = 15
IN_ALL = 30
"""Wrong passwords a minute: so many at once, and then as many spread over each minute."""

KNOWN_SECONDS = 30 * 86400.0
"""How long a network is known from which somebody has signed in."""

KNOWN_MOST = 1000
"""How many such networks there may be; beyond that, the oldest are forgotten."""


class Throttled(Exception):
    """Too many attempts; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many attempts; try again in {seconds:.0f} s")
        self.seconds = seconds


class Throttle:
    """Counts attempts in the store, where every replica sees them.

    An attempt counts from when it begins, so that parallel ones are no way around, until it turns
    out to be right. Guesses from many networks use up what all have together; the owner still gets
    in from this machine and from networks of earlier sessions, each within its own limit.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, client: str) -> None:
        """
        Raises:
            Throttled: too many wrong passwords.
            StoreUnavailable: Redis cannot be reached.
        """
        self._ask(client, count=False)

    def begin(self, client: str) -> None:
        """Count an attempt.

        Raises:
            Throttled: too many wrong passwords.
            StoreUnavailable: Redis cannot be reached.
        """
        self._ask(client, count=True)

    def succeeded(self, client: str) -> None:
        """Take an attempt back that was right.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        place = place_of(client)
        buckets = {name: every for name, _, every in place.buckets}
        self._store.signed_in(place.network, buckets, ttl=KNOWN_SECONDS, limit=KNOWN_MOST)

    def _ask(self, client: str, *, count: bool) -> None:
        place = place_of(client)
        seconds = self._store.sign_in(
            place.network, place.buckets, local=is_loopback(client), count=count
        )
        if seconds > 0:
            raise Throttled(seconds)


@dataclass(frozen=True)
class Place:
    """Where an attempt comes from."""

    address: str
    network: str

    @property
    def buckets(self) -> tuple[tuple[str, int, float], ...]:
        """Return name, size and seconds per attempt of the buckets it counts in, all's last."""
        limits = ((self.address, PER_ADDRESS), (self.network, PER_NETWORK), ("all", IN_ALL))
        return tuple((name, most, 60.0 / most) for name, most in limits)


def place_of(client: str) -> Place:
    """Return an address and its network: /24, and for IPv6, where each customer has a /64, /48."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return Place(f"address:{client[:64]}", f"network:{client[:64]}")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return Place(f"address:{_within(client, 64)}", f"network:{_within(client, 48)}")
        address = address.ipv4_mapped
    return Place(f"address:{address}", f"network:{_within(str(address), 24)}")


def _within(address: str, prefix: int) -> str:
    plain = address.partition("%")[0]  # a scope, such as %eth0, is of this machine only
    return str(ipaddress.ip_network(f"{plain}/{prefix}", strict=False))
