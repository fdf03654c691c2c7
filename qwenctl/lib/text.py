"""Format text for people: control characters, durations, sizes."""

from __future__ import annotations


def escape_control(text: str, by: str | None = None) -> str:
    """Escape control characters in untrusted text before printing it.

    Args:
        by: replaces each; default: its escape sequence, such as ``\\x1b``.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] if by is None else by for c in text)


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


def size(count: float) -> str:
    """Format bytes: ``512 MiB``, ``8.5 GiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
