"""Be another user for a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["needs_root", "nobody"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")


@contextmanager
def nobody(directory: Path) -> Iterator[None]:
    """Have no rights but those of everybody, who may pass ``directory`` and all above it."""
    for path in (directory, *directory.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o005)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
