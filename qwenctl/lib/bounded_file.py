"""Read a file that may be anything: within a time, a size, and only a regular file.

A name may be that of a pipe or a device, or lie on a mount that no longer answers; whoever reads it
then waits for ever (fifo(7), nfs(5) on ``hard``). So the file is read in a thread of its own, which is
given up after a time, and not started a second time while it hangs.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

_Value = TypeVar("_Value")

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unanswered(OSError):
    """The file system has not answered in time."""


class BoundedFile(Generic[_Value]):
    """Parses a file, again only once it has changed.

    Args:
        parse: makes the value of the content; what it raises is remembered like a value.
        most: bytes; a larger file is refused.
        seconds: how long to wait for the file system and `parse` together.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], _Value], *, most: int, seconds: float
    ) -> None:
        self._path, self._parse, self._most, self._seconds = path, parse, most, seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._known: tuple[tuple[int, ...], _Value | Exception] | None = None
        self._failed: OSError | None = None

    def read(self) -> _Value:
        """Return the value of the present content.

        Raises:
            Unanswered: it takes too long.
            OSError: it cannot be read, is too large, or no regular file.
            Exception: what `parse` raised.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._look, name=f"read-{self._path.name}", daemon=True
                )
                self._thread.start()
                self._thread.join(self._seconds)
            if self._thread.is_alive():
                raise Unanswered(
                    errno.ETIMEDOUT, f"no answer within {self._seconds:g} s", str(self._path)
                )
            self._thread = None
            if self._failed is not None:
                raise self._failed
            assert self._known is not None
            value = self._known[1]
        if isinstance(value, Exception):
            raise value
        return value

    def _look(self) -> None:
        self._failed = None
        try:
            found = _refuse_odd(self._path.stat())  # opening some devices has effects
            if self._known is None or self._known[0] != _mark(found):
                self._known = self._load()
        except OSError as error:
            self._failed = error
        except ValueError as error:  # a NUL in the path
            self._failed = OSError(errno.EINVAL, str(error))

    def _load(self) -> tuple[tuple[int, ...], _Value | Exception]:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = _refuse_odd(os.fstat(descriptor))
            content = file.read(self._most + 1)
        if len(content) > self._most:
            raise OSError(errno.EFBIG, f"more than {self._most} bytes", str(self._path))
        try:
            return _mark(found), self._parse(content)
        except Exception as error:
            return _mark(found), error


def _mark(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _refuse_odd(found: os.stat_result) -> os.stat_result:
    """Refuse what is no regular file.

    Raises:
        OSError: it is none.
    """
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(errno.EINVAL, f"it is {words}, not a file")
    return found
