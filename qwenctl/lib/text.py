"""Format text for people: control characters, durations, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TextIO, cast

_COLOUR = r"\x1b\[[0-9;]*m"
"""Colours and weights: ECMA-48, 8.3.117 (SGR)."""


def escape_control(text: str, by: str | None = None) -> str:
    """Escape control characters in untrusted text before printing it.

    Args:
        by: replaces each; default: its escape sequence, such as ``\\x1b``.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] if by is None else by for c in text)


def escape_all(value: Any, *, keep: str = "\n") -> Any:
    """Escape control characters in all texts of JSON data, but those of ``keep``."""
    if isinstance(value, str):
        return value if value.isprintable() else _escaped(value, keep)
    if isinstance(value, Mapping):
        return {
            escape_all(key, keep=keep): escape_all(one, keep=keep) for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [escape_all(one, keep=keep) for one in value]
    return value


def _escaped(text: str, keep: str) -> str:
    return "".join(c if c in keep else escape_control(c) for c in text)


def log_line(text: str) -> str:
    """Return a line of somebody's log for a terminal: without its colours, the rest escaped."""
    return _escaped(re.sub(_COLOUR, "", text), "\t")


def json_ascii_control(text: str) -> str:
    """Write the control characters of a JSON text as JSON escapes (RFC 8259, 7)."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


class PlainStream:
    """A text stream that only lets line ends, tabs and colours through of control characters.

    So no text of a node, a cloud or a visitor steers the terminal, whichever command prints it.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        if not text.isprintable():
            parts = re.split(f"({_COLOUR})", text)
            text = "".join(p if i % 2 else _escaped(p, "\n\t") for i, p in enumerate(parts))
        self.raw.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def plain(stream: TextIO) -> TextIO:
    """Return the stream as a `PlainStream`."""
    return stream if isinstance(stream, PlainStream) else cast(TextIO, PlainStream(stream))


def raw(stream: TextIO) -> TextIO:
    """Return the stream below a `PlainStream`, for whoever draws on a terminal."""
    return stream.raw if isinstance(stream, PlainStream) else stream


def one_line(text: str) -> str:
    """Return the first line of an untrusted message, and where the others are."""
    lines = text.strip().splitlines() or [""]
    return escape_control(lines[0]) + (" (more in `qwenctl logs`)" if len(lines) > 1 else "")


def in_words(error: BaseException) -> str:
    """Return one line about an exception of somebody else's code."""
    first = (str(error).splitlines() or [""])[0][:300]
    return escape_control(f"{type(error).__name__}: {first}")


def duration(seconds: float) -> str:
    """Format seconds: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, lower, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= length:
            high, low = whole // length, whole % length // part
            return f"{high} {unit} {low} {lower}" if low else f"{high} {unit}"
    return f"{whole} s"


def countdown(seconds: float) -> str:
    """Format the seconds until something happens: ``in 12 s``, or ``now``."""
    return f"in {duration(seconds)}" if seconds >= 1 else "now"


def time_left(seconds: float) -> str:
    """Format the seconds that something still lasts: ``12 s``, or ``less than 1 s``."""
    return duration(seconds) if seconds >= 1 else "less than 1 s"


def eta(seconds: float) -> str:
    """Format an estimate of what is left: ``about 12 s left``; ``longer than usual`` once it is over."""
    return f"about {duration(seconds)} left" if seconds >= 1 else "longer than usual"


def size(count: float) -> str:
    """Format bytes: ``512 MiB``, ``8.5 GiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
