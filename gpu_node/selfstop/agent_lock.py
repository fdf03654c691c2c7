"""The lock that keeps a second agent from the same services, and who holds it.

Whoever may read a file may lock it (flock(2)), so that the lock is a file that only the agent's user
can open. A lock that another user holds all the same, as on a file of an earlier version, is no
agent's.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import open_private, user_name

log = logging.getLogger(__name__)

LOCK = "agent.lock"

TRIES, PAUSE = 20, 0.05
"""Attempts, and seconds between two: a watchdog that looks holds the lock for a moment."""


@dataclass(frozen=True)
class Holder:
    """Who holds the lock, as far as this process may know."""

    pid: int | None = None
    user: str = ""
    foreign: bool = False
    """Whether it is a process of another user, and so no agent."""

    def __str__(self) -> str:
        who = "another process" if self.pid is None else f"process {self.pid}"
        return f"{who} of the user {self.user}" if self.user else who


def take_lock(state_dir: Path) -> TextIO:
    """Take the lock; it is held as long as the file is open.

    Raises:
        ConfigError: the file cannot be written, or another agent runs.
    """
    path = state_dir / LOCK
    for _ in range(TRIES):
        try:
            file = os.fdopen(open_private(path, os.O_RDWR | os.O_CREAT), "w")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        if _lock(file) and _is_at(file, path):
            return _closed_to_others(file, path)
        file.close()
        if (holder := lock_holder(state_dir)) is not None and holder.foreign:
            log.warning("%s held %s, and is no agent: the lock is made anew", holder, path)
            path.unlink(missing_ok=True)
        else:
            time.sleep(PAUSE)
    raise ConfigError(
        f"another agent runs with the state directory {state_dir}: "
        f"{lock_holder(state_dir) or 'it has just ended'}"
    )


def lock_holder(state_dir: Path) -> Holder | None:
    """Return who holds the lock; None: nobody. Whoever may not look takes it for held."""
    try:
        descriptor = open_private(state_dir / LOCK)
    except PermissionError:
        return Holder()
    except OSError:
        return None
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _holder(os.fstat(file.fileno()))
    return None


def agent_runs(state_dir: Path) -> bool:
    """Whether an agent holds the lock. True also if this user may not look: then it must not act."""
    holder = lock_holder(state_dir)
    return holder is not None and not holder.foreign


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _closed_to_others(file: TextIO, path: Path) -> TextIO:
    """Return the lock on a file that nobody else has open, as others may have the old one."""
    if not stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
        return file
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"{LOCK}.", dir=path.parent)
        fresh = os.fdopen(descriptor, "w")
        _lock(fresh)
        Path(name).replace(path)
    except OSError as error:  # a full disk must not end the node
        log.warning("cannot make %s anew: %s", path, error.strerror)
        with contextlib.suppress(OSError):
            os.fchmod(file.fileno(), 0o600)
        return file
    file.close()
    return fresh


def _holder(file: os.stat_result) -> Holder:
    """Find the holder in /proc/locks (proc(5)), which names what this process may see."""
    inode = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.split()
            if (
                len(words) >= 6
                and words[1] == "FLOCK"
                and words[3] == "WRITE"
                and words[5] == inode
            ):
                pid = int(words[4])
                return _described(pid, file)
    except (OSError, ValueError):
        pass
    return Holder()


def _described(pid: int, file: os.stat_result) -> Holder:
    try:
        owner = Path("/proc", str(pid)).stat().st_uid
    except OSError:
        # Another user's, where their processes are hidden (ProtectProc=invisible of systemd), or
        # gone. Such a user holds a lock that it could open.
        return Holder(pid, foreign=bool(stat.S_IMODE(file.st_mode) & 0o044))
    return Holder(pid, user_name(owner), foreign=owner not in (file.st_uid, 0))
