"""The installed program `qwenctl` as tests run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from qwenctl.errors import ExitCode
from tests.support.program import inherited

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """No setting of the machine's user reaches the program."""
    return inherited("XDG_", "NO_COLOR", "FORCE_COLOR") | {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "QWENCTL_EMBEDDED_LINGER": "1",
        "LANG": "C.UTF-8",
        **more,
    }


def fails(done: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    """One sentence on stderr, nothing else, and this exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
