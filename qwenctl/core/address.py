"""A node's host and port, written as URLs need them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

_NAME = re.compile(r"(?=.{1,253}$)(?!.*\.\.)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


@dataclass(frozen=True)
class NodeAddress:
    """A host name or address without brackets, and a port."""

    host: str
    port: int

    @property
    def netloc(self) -> str:
        """``host:port``, an IPv6 address in brackets (RFC 3986 §3.2.2)."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        """``http://host:port``, without a path."""
        return f"http://{self.netloc}"


def check_host(text: str) -> str:
    """Return a host name, IPv4 or IPv6 address without brackets.

    Raises:
        ValueError: it has a scheme, a port or a path, or is no host.
    """
    host = text.strip()
    if "@" in host:  # not quoted: it may be a password
        raise ValueError(f"neither a host name nor an address; leave out the login{_meant(host)}")
    if set(host) & set("/?#\\"):
        raise ValueError(
            f"{text!r} is a URL; give the host name or address only{_meant(host) or _SUCH}"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return str(ip_address(host)) if ":" in host or host[:1].isdigit() else _name(host)
    except ValueError:
        name, colon, port = host.rpartition(":")
        if colon and port.isdigit() and (name.count(":") == 0 or name.endswith("]")):
            raise ValueError(
                f"{text!r} has a port in it; give {name!r} here, and the port as `port` of the "
                "first [[gpu.NAME.service]]"
            ) from None
        return _name(host)


_SUCH = ", such as 10.0.0.7"


def _meant(text: str) -> str:
    """Return the host that a URL names, as advice."""
    try:
        host = urlsplit(text if "://" in text else f"//{text.lstrip('/')}").hostname or ""
        return f", here {check_host(host)!r}" if host else ""
    except ValueError:
        return ""


def _name(host: str) -> str:
    if not host.isascii():
        try:
            host = host.encode("idna").decode()  # IDNA, RFC 3490
        except UnicodeError:
            raise ValueError(f"{host!r} is no host name") from None
    # Resolvers read a name whose last label is a number as an IPv4 address (RFC 1123, 2.1).
    if not _NAME.fullmatch(host) or host.rstrip(".").rpartition(".")[2].isdigit():
        raise ValueError(f"{host!r} is neither a host name nor an address such as 10.0.0.7")
    return host
