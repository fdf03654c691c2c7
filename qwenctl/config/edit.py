"""Edit one table of a config file, and leave every other byte as it is.

The text is changed, then the change is proved: the text is parsed before and after, and if anything
else has changed, nothing is written. So comments and order stay, and a file written in an unusual
way (inline tables, quoted keys) is refused rather than damaged.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwenctl.config.loading import load_config
from qwenctl.config.read_schedules import schedules
from qwenctl.config.toml import to_toml
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_text
from qwenctl.lib.settings_file import tomllib

_HEADER = re.compile(r"\s*\[")


def names_in(text: str, place: tuple[str, ...]) -> list[object]:
    """Return the ``name`` of each ``[[place]]`` table, in the file's order."""
    entries = _list_at(tomllib.loads(text), place)
    return [entry.get("name") if isinstance(entry, dict) else None for entry in entries]


def with_table(text: str, place: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """Append a ``[[place]]`` table to the file's text.

    Raises:
        ConfigError: the file is written in a way that does not allow it.
    """
    head = text.rstrip() + "\n\n" if text.strip() else ""
    after = f"{head}[[{'.'.join(place)}]]\n{to_toml(values)}\n"
    wanted = tomllib.loads(text)
    _list_at(wanted, place).append(dict(values))
    return _proved(after, wanted, place)


def without_table(text: str, place: tuple[str, ...], index: int) -> str:
    """Remove a ``[[place]]`` table and the comments directly above it from the text.

    Raises:
        ConfigError: the file is written in a way that does not allow it.
    """
    wanted = tomllib.loads(text)
    entries = _list_at(wanted, place)
    del entries[index]
    if not entries:
        del _table_at(wanted, place[:-1])[place[-1]]
    lines = text.splitlines(keepends=True)
    header = re.compile(r"\s*\[\[\s*" + r"\s*\.\s*".join(map(re.escape, place)) + r"\s*\]\]")
    heads = [number for number, line in enumerate(lines) if header.match(line)]
    if index >= len(heads):
        raise ConfigError(_by_hand(place))
    begin = heads[index]
    later = (n for n in range(begin + 1, len(lines)) if _HEADER.match(lines[n]))
    end = next(later, len(lines))
    while end < len(lines) and lines[end - 1].lstrip().startswith("#"):
        end -= 1  # the comment is of the next table
    while begin and lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    kept = "".join(lines[:begin] + lines[end:])
    return _proved(kept.rstrip() + "\n", wanted, place)


def with_keys(
    text: str, place: tuple[str, ...], values: Mapping[str, str | float | bool | None]
) -> str:
    """Set keys of the table ``[place]`` in the text, or remove them where None.

    Raises:
        ConfigError: the file is written in a way that does not allow it.
    """
    name = ".".join(place)
    refusal = (
        f"[{name}] is not written as such a table in this file; set {', '.join(values)} by hand"
    )
    wanted = tomllib.loads(text)
    table = _table_at(wanted, place)
    lines = text.splitlines(keepends=True)
    header = re.compile(r"\s*\[\s*" + r"\s*\.\s*".join(map(re.escape, place)) + r"\s*\]")
    begin = next((number for number, line in enumerate(lines) if header.match(line)), None)
    if begin is None:
        raise ConfigError(refusal)
    if not lines[begin].endswith("\n"):
        lines[begin] += "\n"
    for key, value in values.items():
        # Strings, numbers and booleans of JSON are TOML.
        line = "" if value is None else f"{key} = {json.dumps(value)}"
        table.pop(key, None)
        if value is not None:
            table[key] = value
        end = next((n for n in range(begin + 1, len(lines)) if _HEADER.match(lines[n])), len(lines))
        there = re.compile(
            rf"""\s*{re.escape(key)}\s*=\s*(?:"[^"]*"|'[^']*'|\w+)([ \t]*(?:#.*)?\r?\n?)$"""
        )
        found = ((n, there.match(lines[n])) for n in range(begin + 1, end))
        at, match = next(((n, match) for n, match in found if match), (begin, None))
        if match is not None:
            lines[at] = line + match[1] if line else ""
        elif line:
            lines.insert(begin + 1, line + ("\r\n" if lines[begin].endswith("\r\n") else "\n"))
    return _proved("".join(lines), wanted, place, refusal)


def _proved(text: str, wanted: object, place: tuple[str, ...], refusal: str = "") -> str:
    try:
        if tomllib.loads(text) == wanted:
            return text
    except tomllib.TOMLDecodeError:
        pass
    raise ConfigError(refusal or _by_hand(place))


def _by_hand(place: tuple[str, ...]) -> str:
    return (
        f"{'.'.join(place)} is not written as [[{'.'.join(place)}]] tables in this file; change it "
        "by hand"
    )


def _table_at(data: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    for key in place:
        data = data.setdefault(key, {})
    return data


def _list_at(data: dict[str, Any], place: tuple[str, ...]) -> list[Any]:
    found = _table_at(data, place[:-1]).setdefault(place[-1], [])
    return found if isinstance(found, list) else []


def check(path: Path, text: str, env: Mapping[str, str] | None = None) -> None:
    """Validate the configuration with this text in the file.

    Args:
        env: overlaid; default: the process's environment.

    Raises:
        ConfigError: it would not be valid.
    """
    fresh = _beside(path, text)
    try:
        config = load_config(str(fresh), env)
        for gpu in config.gpu:
            schedules(config, gpu)  # reads their calendar files
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(fresh), str(path))) from None
    finally:
        fresh.unlink(missing_ok=True)


def edit(path: Path, change: Callable[[str], str], env: Mapping[str, str] | None = None) -> None:
    """Replace the file in one step by the result of ``change`` on its text, if valid.

    Owner and permissions stay. Edits wait for each other, so that none is lost. A missing file
    counts as empty.

    Raises:
        ConfigError: it would not be valid, or the file cannot be written. The file is unchanged.
    """
    target = path.resolve()
    with _locked(target.parent):
        text = change(read_text(target) if target.exists() else "")
        check(target, text, env)
        fresh = _beside(target, text)
        try:
            _dress(fresh, target)
            fresh.replace(target)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock a directory itself, so that no lock file is left behind."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot open {directory}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # network file systems may not lock directories
        yield
    finally:
        os.close(descriptor)


def _dress(fresh: Path, target: Path) -> None:
    """Give the new file the owner, group and permissions of the old one.

    Raises:
        ConfigError: only its owner may do that.
        OSError: it fails otherwise.
    """
    if not target.exists():
        mask = os.umask(0o077)
        os.umask(mask)
        fresh.chmod(0o666 & ~mask)
        return
    old, new = target.stat(), fresh.stat()
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.chown(fresh, old.st_uid, old.st_gid)
        except PermissionError:
            raise ConfigError(
                f"cannot write {target}: it would change its owner or group ({old.st_uid}:"
                f"{old.st_gid}); run this as its owner or as root"
            ) from None
    fresh.chmod(old.st_mode & 0o777)


def _beside(path: Path, text: str) -> Path:
    """Write the text to a new private file in the same directory."""
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(
            suffix=".toml", prefix=f".{path.stem}-", dir=path.parent
        )
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise ConfigError(f"cannot write beside {path}: {error.strerror}") from None
    return Path(name)
