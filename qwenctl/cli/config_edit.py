"""Adds and removes one table of a config file, or keys of one, and leaves every other byte as it is.

The change is made in the text, then proved: the file is parsed before and after, and unless exactly
that came or went, nothing is written. So comments and order stay, and what is written in an
unusual way (inline tables, quoted keys) is refused rather than damaged.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenctl.config import load_config
from qwenctl.errors import ConfigError
from qwenctl.scheduler import schedules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check", "read", "with_keys", "with_table", "without_table", "write"]

_HEADER = re.compile(r"\s*\[")


def read(path: Path) -> str:
    """The file's text, its line ends as they are.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def with_table(text: str, place: tuple[str, ...], table: str, values: Mapping[str, Any]) -> str:
    """The file's text with one more ``[[place]]`` table, whose body is ``table``.

    Raises:
        ConfigError: the file is written in a way that does not allow it.
    """
    before = tomllib.loads(text)
    head = text.rstrip() + "\n\n" if text.strip() else ""
    after = f"{head}[[{'.'.join(place)}]]\n{table.strip()}\n"
    wanted = copy.deepcopy(before)
    _list_at(wanted, place).append(dict(values))
    return _proved(after, wanted, place)


def without_table(text: str, place: tuple[str, ...], index: int) -> str:
    """The file's text without the table number ``index`` (from 0) of those at that place.

    Comments directly above it go with it.

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
        end -= 1  # it belongs to what follows
    while begin and lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    kept = "".join(lines[:begin] + lines[end:])
    return _proved(kept.rstrip() + "\n", wanted, place)


def with_keys(
    text: str, place: tuple[str, ...], values: Mapping[str, str | int | bool | None]
) -> str:
    """The file's text with these keys of the table ``[place]`` set, or removed where None.

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


def check(path: Path, text: str) -> None:
    """Raises `ConfigError` if the configuration would not be valid with this text in the file."""
    fresh = _beside(path, text)
    try:
        config = load_config(str(fresh))
        for gpu in config.gpu:
            schedules(config, gpu)  # reads their calendar files
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(fresh), str(path))) from None
    finally:
        fresh.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Replace the file in one step, with the same permissions, if the configuration is valid then.

    Raises:
        ConfigError: it is not, or the file cannot be written.
    """
    check(path, text)
    target = path.resolve()
    fresh = _beside(target, text)
    try:
        fresh.chmod(target.stat().st_mode & 0o777)
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _beside(path: Path, text: str) -> Path:
    """A new file with that text in the same directory, which only we can read."""
    try:
        descriptor, name = tempfile.mkstemp(
            suffix=".toml", prefix=f".{path.stem}-", dir=path.parent
        )
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write beside {path}: {error.strerror}") from None
    return Path(name)
