"""Load settings: a TOML file, overlaid by environment variables, and explained errors.

A variable names the same key in capitals, tables joined by two underscores.
"""

from __future__ import annotations

import difflib
import json
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_regular
from qwenctl.lib.settings_types import NAME, NAME_OR_EMPTY
from qwenctl.lib.text import escape_control

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["SettingsFile", "models_in", "tomllib"]

_Model = TypeVar("_Model", bound=BaseModel)

_PLAIN = {
    "tuple_type": "input should be a list",
    "dict_type": "input should be a table",
    "model_type": "input should be a table",
    "model_attributes_type": "input should be a table",
}
"""Words of TOML where Pydantic's are Python's."""


MAX_DEPTH = 32
"""Tables in tables; no setting lies deeper than eight."""

_TOO_DEEP = "tables or lists lie too deep in each other for settings"


def check_path(text: str) -> None:
    """Refuse a path that the system cannot take.

    Raises:
        ConfigError: a NUL is in it, or it is in the home directory of nobody.
    """
    if "\0" in text:
        raise ConfigError(f"{escape_control(text)}: no path has a NUL character in it")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text}: this machine has no such user") from None


@dataclass(frozen=True)
class SettingsFile(Generic[_Model]):
    """The settings file of one program, and how it is read.

    Args:
        model: validates them.
        prefix: of the environment variables.
        shows: returns whether an error may quote the value of the key at this place.
        absent: advice where the file is missing.
        unreadable: advice where it cannot be read.
        no_key: says that a key is missing; ``{variable}`` is the variable that would set it.
        json_starts: first characters of a variable that is read as JSON. Other text is converted
            by the type of its key.
        keys_of: the keys that a variable names, by its name without the prefix, in lower case;
            none: it is no setting.
        fields_of: the keys of a model's table.
    """

    model: type[_Model]
    prefix: str
    shows: Callable[[list[str]], bool]
    absent: str = ""
    unreadable: str = ""
    no_key: str = ": field required"
    json_starts: str = "[{"
    keys_of: Callable[[str], list[str]] = lambda name: name.split("__")
    fields_of: Callable[[type[BaseModel]], Mapping[str, FieldInfo]] = lambda m: m.model_fields

    def load(self, path: str | Path | None, env: Mapping[str, str]) -> _Model:
        """Read the file, if there is any, overlay the environment, and validate.

        Raises:
            ConfigError: one sentence a problem: the file, the key, the value, what is allowed.
        """
        data = {} if path is None else self._read(path)
        origins = self._overlay(data, env)
        self._check_depth(data, "the environment" if path is None else str(path), origins)
        try:
            return self.model.model_validate(data)
        except ValidationError as error:
            where = "the environment" if path is None else str(path)
            raise ConfigError("\n".join(self._explain(error, where, origins))) from None

    def _read(self, path: str | Path) -> dict[str, Any]:
        check_path(str(path))
        try:
            return tomllib.loads(read_regular(Path(path).expanduser()).decode("utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except RecursionError:
            raise ConfigError(f"{path}: {_TOO_DEEP}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text") from None
        except OSError as error:
            advice = self.absent if isinstance(error, FileNotFoundError) else self.unreadable
            raise ConfigError(f"cannot read {path}: {error.strerror}{advice}") from None

    def _overlay(self, data: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
        """Put the variables into ``data``; return which key came from which variable."""
        origins: dict[str, str] = {}
        for variable in sorted(v for v in env if v.startswith(self.prefix)):
            if not (keys := self.keys_of(variable[len(self.prefix) :].lower())):
                continue
            table: Any = data
            for key in keys[:-1]:
                table = table.setdefault(key, {}) if isinstance(table, dict) else None
            if not isinstance(table, dict):
                raise ConfigError(f"{variable}: {'.'.join(keys[:-1])} is not a table")
            try:
                table[keys[-1]] = self._value(env[variable])
            except RecursionError:
                raise ConfigError(f"{variable}: {_TOO_DEEP}") from None
            origins[".".join(keys)] = variable
        return origins

    def _check_depth(self, data: dict[str, Any], where: str, origins: Mapping[str, str]) -> None:
        """Refuse tables in tables without end, and NUL, which no path and no program takes.

        Raises:
            ConfigError: there is one.
        """
        level: list[tuple[str, Any]] = [("", data)]
        for _ in range(MAX_DEPTH):
            below: list[tuple[str, Any]] = []
            for place, value in level:
                inner = value if isinstance(value, dict) else dict(enumerate(value))
                for key, item in inner.items():
                    name = f"{place}.{key}".lstrip(".")
                    if "\0" in str(key) or (isinstance(item, str) and "\0" in item):
                        shown = escape_control(name)
                        head = (
                            f"{origins[name]} ({shown})" if name in origins else f"{where}: {shown}"
                        )
                        raise ConfigError(f"{head}: remove the NUL character (\\u0000) from it")
                    if isinstance(item, (dict, list)):
                        below.append((name, item))
            if not below:
                return
            level = below
        raise ConfigError(f"{where}: {level[0][0][:60]}…: {_TOO_DEEP}")

    def _value(self, text: str) -> Any:
        if text.startswith(tuple(self.json_starts)):
            try:
                return json.loads(text)
            except ValueError:
                pass
        return text

    def _explain(
        self, error: ValidationError, where: str, origins: Mapping[str, str]
    ) -> Iterator[str]:
        for problem in error.errors(include_url=False):
            location = [str(part) for part in problem["loc"] if part != "[key]"]
            key, kind = ".".join(location), problem["type"]
            source = origins.get(key)
            if source is None and kind == "extra_forbidden":  # a table only in variables
                source = next((origins[k] for k in origins if k.startswith(f"{key}.")), None)
            head = f"{source} ({key})" if source else f"{where}: {key}" if key else where
            if kind == "extra_forbidden":
                known = self._known_keys(location[:-1])
                near = difflib.get_close_matches(location[-1], known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                yield f"{head}: unknown key; {hint}"
            elif kind == "missing":
                variable = self.prefix + "__".join(location).upper()
                yield head + self.no_key.format(variable=variable)
            else:
                message = _PLAIN.get(kind, problem["msg"].removeprefix("Value error, "))
                if problem.get("ctx", {}).get("pattern") in (NAME, NAME_OR_EMPTY):
                    message = "a name is made of lower-case letters, digits and hyphens, at most 32"
                found = _found(problem["input"]) if location and self.shows(location) else ""
                if found and kind == "tuple_type":
                    message += _as_list(problem["input"])
                yield f"{head}: {message[:1].lower()}{message[1:]}{found}"

    def _known_keys(self, location: list[str]) -> list[str]:
        """Return the keys of the table at that place."""
        model: type[BaseModel] = self.model
        for part in location:
            if (field := self.fields_of(model).get(part)) is not None:
                model = next(models_in(field.annotation), model)
        return sorted(self.fields_of(model))


def _found(value: object) -> str:
    if isinstance(value, (BaseModel, dict, list, tuple)):
        return ""
    text = repr(value)
    return f", found {text if len(text) <= 60 else text[:57] + '…'}"


def _as_list(value: object) -> str:
    """Return what a text's words are as a list."""
    if not isinstance(value, str) or not value.strip() or len(value) > 60:
        return ""
    return f", for example {json.dumps(value.split(), ensure_ascii=False)}"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the models in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)
