"""Real files of random bytes, put out of the page cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_node.services.page_cache import resident_bytes

MB = 1024 * 1024


def write(path: Path, size: int = 10) -> Path:
    """Write a file of so many bytes, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(min(size, MB)) * (size // MB or 1))
    return path


def resident(path: Path) -> int:
    """How much of a file is in the page cache, in bytes."""
    with path.open("rb") as file:
        found = resident_bytes(file.fileno(), 0, path.stat().st_size)
    assert found is not None
    return found


def make_cold(*paths: Path) -> None:
    """Put files out of the page cache; skips the test where the file system is memory itself."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(resident(path) for path in paths):
        pytest.skip("files stay in memory on this file system")
