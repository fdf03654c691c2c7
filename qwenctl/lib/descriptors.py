"""Raise the limit of open files, which a child process must not inherit."""

from __future__ import annotations

import contextlib
import resource

MOST = 1 << 20
"""The highest limit that is asked for: more than one process needs, where there is no hard limit."""

_first: int | None = None


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard limit; return the soft limit.

    The usual soft limit, 1024, is for programs that call select(), which we do not.
    """
    global _first
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _first = soft if _first is None else _first
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    # macOS names no hard limit and accepts OPEN_MAX (10,240) at most: setrlimit(2).
    for limit in (wanted, 10_240):
        if soft != resource.RLIM_INFINITY and limit > soft:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return limit
    return MOST if soft == resource.RLIM_INFINITY else soft


def limit_for_children() -> str:
    """Return the soft limit of before `raise_limit`, as ``ulimit -S -n`` takes it.

    Children may use select(), which overruns its memory with descriptors above 1023 (select(2)), or
    close every descriptor up to the limit.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if _first is None else _first
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
