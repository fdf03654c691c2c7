"""Say why a command cannot be run on this machine."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path


def why_not_run(command: Sequence[str], cwd: str, path: str | None) -> str:
    """Return why the command cannot be run in a directory with this PATH, or nothing."""
    if cwd and not Path(cwd).is_dir():
        return f"no directory {cwd}"
    program = command[0] if command else ""
    inside = cwd and shutil.which(str(Path(cwd) / program))
    if shutil.which(program, path=path) is None and not inside:
        return f"no program {program!r} that can be run"
    return ""


def listens(port: int) -> bool:
    """Return whether a program on this machine takes connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
