"""Split a service's output into lines, mask secrets, and pass them on."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from gpu_node.services.progress import parse_progress
from gpu_node.services.runtime import Output
from qwenctl.lib.private_file import open_private
from qwenctl.lib.redaction import is_secret, redacted, secret_options
from qwenctl.protocol.messages import Service

log = logging.getLogger(__name__)

LOG_BYTES = 5 * 1024 * 1024
MAX_LINE_BYTES = 8 * 1024

MAX_LINES, LAST_BYTES = 2000, 4096
"""Lines a second that are all passed on; beyond them, only those in the last bytes of each chunk. Whoever
writes faster than its output is read stands still; the last words are worth the most."""

_ENDS = re.compile(rb"\r\n|\n|\r(?!$)")
"""A line's end; a carriage return at the very end may be one half of an end."""

# Colours and other terminal control; tabs stay.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")

MIN_SECRET = 6
"""Characters."""


def secrets_of(service: Service, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Collect a service's secrets, by the names of variables and options.

    All variables of its file count as secrets.

    Args:
        service: as the spec has it.
        environment: its own variables and those of the file.
    """
    words = service.command + (service.container.entrypoint if service.container else ())
    found = [secret for _, _, secret in secret_options(words)] + [
        value for name, value in environment.items() if is_secret(name) or name not in service.env
    ]
    # A short secret would be in every word.
    return tuple(value for value in found if len(value) >= MIN_SECRET)


class _LogFile(RotatingFileHandler):
    """A log file that is never a link or a pipe that somebody else has put there."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return open(open_private(Path(self.baseFilename), flags, 0o644), "a", encoding="utf-8")


class LineSink:
    """Takes chunks of output and passes on lines. For one thread.

    Progress bars redraw a line after a carriage return: that is progress and no line of the log.

    Args:
        log_file: takes the lines; small, with one older file.
        output: takes lines and progress.
        secrets: are masked in both.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        log_file: Path,
        output: Output,
        secrets: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log: logging.Handler
        try:
            self._log = _LogFile(log_file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:  # a full disk does not stop the service
            log.warning("no log in %s: %s", log_file, error.strerror)
            self._log = logging.NullHandler()
        self._output = output
        self._secrets = secrets
        self._pending = b""
        self._clock = clock
        self._second = clock()
        self._lines = 0
        self._left_out = 0

    def feed(self, chunk: bytes) -> None:
        """Take a chunk."""
        pending = self._thinned(self._pending + chunk)
        start = 0
        for end in _ENDS.finditer(pending):
            self._lines += 1
            line, start = pending[start : end.start()], end.end()
            if not line:
                continue
            text = self._decode(line)
            self._report_progress(text)
            # A line that is redrawn is of no use in a log.
            if end.group() != b"\r":
                self._write(text)
        self._pending = pending[start:]
        if len(self._pending) > MAX_LINE_BYTES:
            self._flush()
        elif b"%" in self._pending:
            self._report_progress(self._decode(self._pending))

    def _thinned(self, pending: bytes) -> bytes:
        """Leave out what is too much for this second."""
        if self._clock() - self._second >= 1.0:
            self._say_left_out()
            self._second, self._lines = self._clock(), 0
        if self._lines < MAX_LINES or len(pending) <= LAST_BYTES:
            return pending
        before = len(pending) - LAST_BYTES
        cut = max(pending.rfind(b"\n", 0, before), pending.rfind(b"\r", 0, before)) + 1
        self._left_out += pending.count(b"\n", 0, cut)
        return pending[cut:]

    def _say_left_out(self) -> None:
        if self._left_out:
            self._write(f"({self._left_out} lines left out: more than {MAX_LINES} a second)")
            self._left_out = 0

    def close(self) -> None:
        """Pass on the rest."""
        self._say_left_out()
        self._flush()
        with contextlib.suppress(OSError):  # a full disk has no room for the last words
            self._log.close()

    def _flush(self) -> None:
        text, self._pending = self._decode(self._pending), b""
        self._write(text)

    def _write(self, text: str) -> None:
        if text:
            self._log.handle(logging.makeLogRecord({"msg": text}))
            self._output.line(text)

    def _report_progress(self, text: str) -> None:
        if (progress := parse_progress(text)) is not None:
            self._output.progress(progress)

    def _decode(self, line: bytes) -> str:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "replace")
        return redacted(_CONTROL.sub("", text).rstrip(), self._secrets)
