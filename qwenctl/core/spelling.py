"""Other readings of a request's path: one spelling must not be ruled on, and another one served.

A path is ruled on percent-decoded, and forwarded as it was sent. What serves it may merge slashes,
take a backslash for a slash, resolve dot segments (RFC 3986 §5.2.4), drop the parameters of a
segment (§3.3), decode twice, or ignore case.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from urllib.parse import unquote

_ODD = re.compile(r"[%;\\\x00-\x20\x7f#]|//|/\.")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SLASH = re.compile(r"%(?=2[fF]|5[cC])")
_PARAMETERS = re.compile(r";[^/]*")
_SLASHES = re.compile(r"//+")


def is_plain(path: str) -> bool:
    """Return whether a path as it was sent has but one reading, apart from its case."""
    return not _ODD.search(path)


def malformed(path: str) -> str:
    """Return why a path as it was sent is no path of a URL (RFC 3986 §3.3), or an empty text."""
    if is_plain(path):
        return ""
    if _BAD_ESCAPE.search(path):
        return "a percent sign in the path is not followed by two hexadecimal digits"
    if _CONTROL.search(unquote(path)) or " " in path or "#" in path:
        return "the path has a control character, a space or a fragment"
    return ""


@lru_cache(maxsize=512)
def readings(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the usual readings of a path as it was sent, and the readings of lenient servers.

    Usual are those with and without encoded slashes decoded: file names have them.
    """
    decoded = unquote(path)
    usual = (decoded, unquote(_SLASH.sub("%25", path)))
    merged = _SLASHES.sub("/", decoded)
    loosest = _loosest(decoded)
    lenient = {merged, _PARAMETERS.sub("", decoded), loosest, _resolved(merged), _resolved(loosest)}
    lenient.add(_resolved(_loosest(unquote(decoded))))
    return usual, tuple(lenient.difference(usual))


def _loosest(decoded: str) -> str:
    return _SLASHES.sub("/", _PARAMETERS.sub("", decoded.replace("\\", "/")))


def _resolved(path: str) -> str:
    """Return a path without dot segments; a slash at its end stays."""
    folder = path.endswith(("/", "/.", "/.."))
    return posixpath.normpath(path).rstrip("/") + ("/" if folder else "")
