"""Read small files with explained errors; write them for their owner alone.

In a directory that others can write, a name may be a link to another file, or a pipe that never
answers: what is opened here is neither (open(2): O_NOFOLLOW, O_NONBLOCK).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from qwenctl.errors import ConfigError

MOST_BYTES = 16 * 1024 * 1024
"""A longer file is none of ours."""


def private_directory(path: Path, names: Iterable[str] = (), *, trusting: bool = False) -> None:
    """Make a directory that only this user can use, or make it so.

    Where others could write until now, what they have put in place of our files is removed.

    Args:
        names: the names of our files in it.
        trusting: root may use another user's, as with a user's settings or a mounted directory.

    Raises:
        ConfigError: it is another user's, who could replace any file in it.
        OSError: it cannot be made or changed.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    for found in (path.lstat(), path.stat()):
        if found.st_uid not in (os.geteuid(), 0) and not (trusting and os.geteuid() == 0):
            raise ConfigError(
                f"the directory {path} belongs to the user {user_name(found.st_uid)}, who could "
                f"replace every file in it: choose another one, or run chown -R "
                f"{user_name(os.geteuid())} {path} after a look into it"
            )
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or not mode & 0o077:
        return
    path.chmod(mode & 0o700)
    for name in names if mode & 0o022 else ():
        with contextlib.suppress(FileNotFoundError):
            entry = (path / name).lstat()
            planted = stat.S_ISLNK(entry.st_mode) or stat.S_ISFIFO(entry.st_mode)
            if planted or entry.st_uid not in (os.geteuid(), 0):
                (path / name).unlink()


def user_name(uid: int) -> str:
    """Return the user's name, else the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def open_private(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file of this user or of root, and no link; a new file is this user's alone.

    Root may also open the files of others.

    Raises:
        OSError: it cannot be opened, or is no such file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    found = os.fstat(descriptor)
    ours = os.geteuid() == 0 or found.st_uid in (os.geteuid(), 0)
    if stat.S_ISREG(found.st_mode) and ours:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file of this user", str(path))


def read_private(path: Path) -> bytes:
    """Read a small regular file of this user or of root, and no link.

    Raises:
        OSError: it cannot be read, is no such file, or has more than `MOST_BYTES`.
    """
    return _read_small(open_private(path), path)


def read_regular(path: Path) -> bytes:
    """Read a small regular file, or a link to one, whosever it is; wait for no pipe.

    Raises:
        OSError: it cannot be read, is no such file, or has more than `MOST_BYTES`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return _read_small(descriptor, path)


def _read_small(descriptor: int, path: Path) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read.

    Raises:
        OSError: the directory cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, text)


def _replace(path: Path, text: str) -> None:
    # mkstemp makes a new file with mode 0600 and never opens one that is there.
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_note(path: Path, text: str) -> None:
    """Replace a small file in its directory, or overwrite it where that fails.

    A full disk has no room for another file, but there is room in the old one.

    Raises:
        OSError: neither is possible.
    """
    try:
        _replace(path, text)
    except OSError:
        with os.fdopen(open_private(path, os.O_RDWR), "r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


LEAST_SECRET, GOOD_SECRET = 8, 16
"""Characters of a secret: fewer are refused, fewer are warned of (a key of an HMAC should have as
many bytes as its hash, RFC 2104, 3)."""

NEW_SECRET = "`openssl rand -base64 32` makes one"


def long_enough(secret: str, where: str) -> str:
    """Return a secret that nobody finds by trying.

    Raises:
        ConfigError: it is shorter than `LEAST_SECRET`.
    """
    if len(secret) < LEAST_SECRET:
        raise ConfigError(
            f"{where}: a secret of fewer than {LEAST_SECRET} characters is found by trying; "
            f"{NEW_SECRET}"
        )
    return secret


def exposed(path: Path) -> str:
    """Return who else can use a file with a secret, and what ends that; empty: nobody."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if not mode & 0o006:
        return ""
    can = "change" if mode & 0o002 else "read"
    return (
        f"every user of this machine can {can} {path}; run `chmod o-rwx {shlex.quote(str(path))}`"
    )


def read_secret(path: Path, key: str) -> str:
    """Read a secret file; whitespace around the secret is removed.

    Args:
        key: the setting that names the file, for the error.

    Raises:
        ConfigError: it cannot be read, is empty, or every user can change it.
    """
    if not (text := read_text(path, f"{key}: ").strip()):
        raise ConfigError(f"{key}: {path} is empty")
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o002:
            raise ConfigError(f"{key}: {exposed(path)}")
    return text


def read_text(path: Path, before: str = "", encoding: str = "utf-8") -> str:
    """Read a text file, its line ends as they are.

    Args:
        before: begins the error.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_regular(path).decode(encoding)
    except OSError as error:
        raise ConfigError(f"{before}cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{before}{path} is not UTF-8 text") from None
