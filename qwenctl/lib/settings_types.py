"""Types of settings: durations, sizes, names, URLs."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

MAX_DURATION = 10_000 * 86400.0
"""Seconds; longer ones are mistakes."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> float:
    """Parse ``90``, ``"90s"``, ``"1h30m"``, ``"250ms"`` or ``"2d"`` into seconds.

    Raises:
        ValueError: anything else, negative numbers included.
    """
    if isinstance(value, bool):
        raise ValueError(_DURATION_HELP)
    if isinstance(value, (int, float)):
        seconds = float(value)
    else:
        text = str(value).strip().replace(" ", "").lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif text and not _DURATION.sub("", text):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(text))
        else:
            raise ValueError(_DURATION_HELP)
    if seconds >= MAX_DURATION:
        raise ValueError(f"it is too long; less than {MAX_DURATION / 86400:.0f}d is allowed")
    if not seconds >= 0:
        raise ValueError(_DURATION_HELP)
    return seconds


_DURATION_HELP = 'a duration is a number of seconds or text such as "90s", "10m" or "1h30m"'

Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type="float | str"),
]
"""Seconds; written as a number or as ``"10m"``."""


NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"
NAME_OR_EMPTY = r"^([a-z0-9][a-z0-9-]{0,31})?$"


def web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("this is no URL; it begins with http:// or https:// and names a host")
    return value


def web_origin(value: str) -> str:
    """Return a site as browsers name it in ``Origin`` (RFC 6454 §6.1).

    Raises:
        ValueError: it is no origin.
    """
    try:
        parts = urlsplit(value.strip().lower().removesuffix("/"))
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except (ValueError, UnicodeError):
        host, port = "", None
    usable = host and "*" not in host and "@" not in value
    if not usable or f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError(
            f"{value!r} is no site: write its scheme, host and port, such as https://chat.example.com "
            "or http://localhost:3000, without a path"
        )
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, usual) else "")


def _file_path(value: str) -> str:
    """Refuse a path in the home directory of a user that there is not."""
    try:
        Path(value).expanduser()
    except RuntimeError:
        name = value.partition("/")[0]
        raise ValueError(
            f"this machine has no user {name[1:]!r}, whose home {name} means"
        ) from None
    return value


FilePath = Annotated[str, AfterValidator(_file_path)]
"""A path, in which ``~`` and ``~user`` are home directories."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?")


def _size(value: object) -> int:
    """Parse ``1048576``, ``"512m"``, ``"8g"`` or ``"8GiB"``: powers of 1024, as in Docker."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(str(value).strip().lower())
    if isinstance(value, bool) or not found:
        raise ValueError('a size is a number of bytes or text such as "512m" or "8g"')
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))


Size = Annotated[int, BeforeValidator(_size, json_schema_input_type="int | str")]
"""Bytes; written as a number or as ``"8g"``."""


def _lead(value: object) -> float | str:
    return "auto" if value == "auto" else parse_duration(value)


Lead = Annotated[
    float | Literal["auto"],
    BeforeValidator(_lead, json_schema_input_type="float | str"),
]
"""Seconds, or as long as a start usually takes."""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback address (RFC 6890)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
