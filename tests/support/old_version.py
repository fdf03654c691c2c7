"""The source of an earlier version, for tests of old and new programs against each other."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.paths import ROOT

__all__ = ["unpacked"]


def unpacked(commit: str, folder: Path) -> Path:
    """Put the source of that commit into the folder; skip the test if the history lacks it."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"the history of this checkout lacks {commit}: this machine cannot run it")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder)
    return folder
