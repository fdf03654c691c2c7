"""Read what proxies in front say of a request: X-Forwarded-* and Forwarded (RFC 7239).

Each proxy appends to a list, so its right end is the nearest proxy's. Entries count from there as
far as trusted proxies have written them: to the left of the first untrusted address, a client may
have written whatever it likes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Networks = tuple["ipaddress.IPv4Network | ipaddress.IPv6Network", ...]

FIELDS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")

_PASSED_ON = (*FIELDS, "forwarded", "x-real-ip", "via")

_NODE = re.compile(r"\[([^\]]*)\](?::\w+)?|([^:]*):\w+")
"""An address in brackets, or one and a port (RFC 7239 §6)."""

_PAIR = re.compile(r"""([\w!#$%&'*+.^`|~-]+)=("(?:[^"\\]|\\.)*"|[^",;\s]*)""")
_END = re.compile(r"(?:[\s;]*(,)[\s,;]*|\s*;[\s;]*|\s*$)")
"""A parameter of Forwarded, and what ends it; the next element follows a comma (RFC 7239 §4)."""

_TLS = ("https", "wss")
_PROTOCOLS = (*_TLS, "http", "ws")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The request as the outermost trusted proxy got it; empty texts where nobody says."""

    client: str
    """The address of the rightmost hop that is no trusted proxy."""
    host: str = ""
    proto: str = ""
    """``http`` or ``https``."""
    path: str = ""
    """All hops before the peer, for X-Forwarded-For."""
    by_forwarded: bool = False
    """Whether it was read from Forwarded."""


def read(headers: Mapping[str, str], peer: str, trusted: Networks) -> Forwarded:
    """Read what ``peer``, a trusted proxy, says.

    Forwarded counts only without any X-Forwarded-*: a proxy that sets these may pass a client's
    Forwarded on.
    """
    if any(field in headers for field in FIELDS):
        path = headers.get(FIELDS[0], "")
        hops, hosts, protos = (_entries(headers.get(field, "")) for field in FIELDS)
        client, depth = _outermost(hops, peer, trusted)
        # A proxy may set one list and append to another, so that they differ in length. TLS at any
        # hop is believed: who forges it keeps only his own cookie from himself.
        return Forwarded(client, _first(hosts[-depth:]), _proto(protos), path)
    elements = _elements(headers.get("forwarded", ""))
    hops = [element.get("for", "") for element in elements]
    client, depth = _outermost(hops, peer, trusted)
    believed = elements[-depth:]
    return Forwarded(
        client,
        _first([element.get("host", "") for element in believed]),
        _proto([element.get("proto", "") for element in believed]),
        ", ".join(filter(None, map(_address, hops))),
        bool(elements),
    )


def passed_on(headers: Mapping[str, str]) -> bool:
    """Return whether a proxy, believed or not, has passed the request on."""
    return any(field in headers for field in _PASSED_ON)


def within(address: str, networks: Networks) -> bool:
    """Return whether an address is in any of these networks."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


@lru_cache(maxsize=1024)
def plain_address(text: str) -> str:
    """Return an address in its usual spelling, one of IPv4 as such (RFC 4291 §2.5.5.2), or empty."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _outermost(hops: Sequence[str], peer: str, trusted: Networks) -> tuple[str, int]:
    """Return the client's address, and how many entries trusted proxies have written.

    A hop without an address ("unknown", or a name of RFC 7239 §6.3) ends the way, at the proxy that
    has written it.
    """
    client, depth = peer, 0
    for hop in reversed(hops):
        depth += 1
        address = _address(hop)
        client = address or client
        if not address or not within(address, trusted):
            break
    return client, max(depth, 1)


def _address(hop: str) -> str:
    found = _NODE.fullmatch(hop)
    return plain_address(found[1] or found[2] or "" if found else hop)


def _entries(value: str) -> list[str]:
    return [text for part in value.split(",") if (text := part.strip().strip('"'))]


def _first(values: Sequence[str]) -> str:
    return next(filter(None, values), "")


def _proto(values: Sequence[str]) -> str:
    said = [value.lower() for value in values if value.lower() in _PROTOCOLS]
    if not said:
        return ""
    return "https" if any(value in _TLS for value in said) else "http"


def _elements(value: str) -> list[dict[str, str]]:
    """Return the elements of Forwarded; none if it is malformed, as by a quote left open."""
    elements: list[dict[str, str]] = [{}]
    at = len(value) - len(value.lstrip(" \t,;"))
    while at < len(value):
        pair = _PAIR.match(value, at)
        end = _END.match(value, pair.end()) if pair else None
        if pair is None or end is None or pair[1].lower() in elements[-1]:
            return []
        text = pair[2]
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        elements[-1][pair[1].lower()] = text
        if end[1] and end.end() < len(value):
            elements.append({})
        at = end.end()
    return [element for element in elements if element]
