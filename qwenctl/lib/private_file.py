"""Read small files with explained errors; write them for their owner alone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from qwenctl.errors import ConfigError


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that only its owner can read.

    Raises:
        OSError: the directory cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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


def read_secret(path: Path, key: str) -> str:
    """Read a secret file; whitespace around the secret is removed.

    Args:
        key: the setting that names the file, for the error.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    if not (text := read_text(path, f"{key}: ").strip()):
        raise ConfigError(f"{key}: {path} is empty")
    return text


def read_text(path: Path, before: str = "", encoding: str = "utf-8") -> str:
    """Read a text file, its line ends as they are.

    Args:
        before: begins the error.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode(encoding)
    except OSError as error:
        raise ConfigError(f"{before}cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{before}{path} is not UTF-8 text") from None
