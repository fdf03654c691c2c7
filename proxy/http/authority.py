"""Check that a request names its host once: the host decides which GPU it is for."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NO_HOST = re.compile(rb"[\x00-\x20\x7f/\\?#@,;\"<>^`{|}]")
"""What no host with a port has (RFC 3986 §3.2.2), and other parts of a URL or a list have."""

_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#]*)")


def host_problem(target: bytes, headers: Iterable[tuple[bytes, bytes]], version: str) -> str:
    """Return why a request's host is to be refused, or an empty text (RFC 9112 §3.2).

    Header names are lower case. A target in absolute form names the host, too: a server in front of
    us may have gone by the one, and we would by the other.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return "the request has more than one Host"
    if not hosts and version not in ("1.0", "0.9"):
        return "the request has no Host"
    host = hosts[0].strip() if hosts else b""
    if not is_host(host):
        return "the Host is not a host name or address with an optional port"
    absolute = None if target.startswith(b"/") else _ABSOLUTE.match(target)
    if absolute and _without_port(absolute) != _without_port(absolute, host):
        return "the Host is not that of the request's target"
    return ""


def is_host(text: bytes) -> bool:
    """Return whether a text may be a host with an optional port, or is empty."""
    return not _NO_HOST.search(text)


def with_path(target: bytes) -> bytes:
    """Return a target in absolute form with a path, which it may leave out (RFC 9112 §3.2.1)."""
    absolute = None if target.startswith(b"/") else _ABSOLUTE.match(target)
    if absolute is None or target[absolute.end() :].startswith(b"/"):
        return target
    return absolute[0] + b"/" + target[absolute.end() :]


def _without_port(absolute: re.Match[bytes], host: bytes | None = None) -> bytes:
    """Return the host, lower case and without its scheme's usual port."""
    usual = b":443" if absolute[0][:5].lower() == b"https" else b":80"
    return (absolute[1] if host is None else host).lower().removesuffix(usual)
