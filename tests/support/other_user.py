"""Be another user for a moment.

The checkout and Python may lie below a home that is closed to others: what is called as another
user must have been imported before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["needs_root", "nobody"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")


@contextmanager
def nobody(directory: Path) -> Iterator[None]:
    """Have no rights but those of everybody, who may pass ``directory`` and all above it."""
    ours = Path(tempfile.gettempdir()).resolve()
    for path in (directory.resolve(), *directory.resolve().parents):
        if path.stat().st_mode & 0o005 != 0o005:
            if not path.is_relative_to(ours):
                pytest.skip(f"this machine cannot let another user into {path}: set TMPDIR")
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
