"""Every setting of qwenctl, typed, in one file: ``qwenctl.toml``, overlaid by ``QWENCTL_*``.

An environment variable names the same key in capitals, tables joined by two underscores:
``QWENCTL_PROXY__LISTEN=127.0.0.1:9000``, ``QWENCTL_GPU__MAIN__IDLE_TIMEOUT=20m``.

Looked for, in this order: ``--config``, ``$QWENCTL_CONFIG``, ``./qwenctl.toml``,
``$XDG_CONFIG_HOME/qwenctl/qwenctl.toml``.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from qwenctl.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from qwenctl.clouds import registry
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import fields_of
from qwenctl.lib.settings_types import NAME, NAME_OR_EMPTY

__all__ = [
    "config_path",
    "load_config",
]

ENV_PREFIX = "QWENCTL_"


def config_path(given: str | None = None) -> Path | None:
    """The config file in force, or None if there is none.

    Raises:
        ConfigError: a file was named and does not exist.
    """
    named = given or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigError(f"no config file at {path}; `qwenctl init` writes one")
        return path
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    for path in (Path("qwenctl.toml"), Path(base).expanduser() / "qwenctl" / "qwenctl.toml"):
        if path.is_file():
            return path
    return None


def load_config(given: str | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read, overlay and check the configuration.

    Raises:
        ConfigError: one sentence a problem: the file, the key, what was found, what is allowed.
    """
    path = config_path(given)
    data: dict[str, Any] = {}
    where = "the environment"
    if path is not None:
        where = str(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    origins = _overlay(data, os.environ if env is None else env)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, where, origins))) from None
    config._source = str(path.resolve()) if path else ""
    return config


def _overlay(data: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Put ``QWENCTL_*`` variables into ``data``; which key came from which variable."""
    origins: dict[str, str] = {}
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable.startswith(f"{ENV_PREFIX}NODE__"):
            continue  # the agent's own (gpu_node)
        keys = [key.lower() for key in variable[len(ENV_PREFIX) :].split("__")]
        if keys[0] == "gpu" and len(keys) > 1:
            keys[1] = keys[1].replace("_", "-")
        table: Any = data
        for key in keys[:-1]:
            table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise ConfigError(f"{variable}: {'.'.join(keys[:-1])} is not a table")
        table[keys[-1]] = _env_value(env[variable])
        origins[".".join(keys)] = variable
    return origins


_NOT_SETTINGS = {
    f"{ENV_PREFIX}{name}" for name in ("CONFIG", "DEBUG", "EMBEDDED_LINGER", "TEST_SNAPSHOT_DELAY")
}


def _env_value(text: str) -> Any:
    """Lists and tables are written as JSON; everything else stays text and is converted by type."""
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _explain(error: ValidationError, where: str, origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"] if part != "[key]"]
        key = ".".join(location)
        source = origins.get(key)
        if source is None and problem["type"] == "extra_forbidden":  # a table only in variables
            source = next((origins[k] for k in origins if k.startswith(f"{key}.")), None)
        head = f"{source} ({key})" if source else f"{where}: {key}" if key else where
        if problem["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            yield f"{head}: unknown key; {hint}"
            continue
        message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        if problem.get("ctx", {}).get("pattern") in (NAME, NAME_OR_EMPTY):
            message = "a name is made of lower-case letters, digits and hyphens, at most 32"
        message = message[:1].lower() + message[1:]
        found = (
            "" if problem["type"] == "missing" or _secret(location) else _found(problem["input"])
        )
        yield f"{head}: {message}{found}"


_PLAIN = {
    "tuple_type": "input should be a list",
    "dict_type": "input should be a table",
    "model_type": "input should be a table",
    "model_attributes_type": "input should be a table",
}
"""Words of TOML where Pydantic's are Python's."""


def _secret(location: list[str]) -> bool:
    return bool(location) and any(
        word in location[-1] for word in ("secret", "password", "hash", "redis_url")
    )


def _found(value: object) -> str:
    if isinstance(value, (BaseModel, dict, list, tuple)):
        return ""
    text = repr(value)
    return f", found {text if len(text) <= 60 else text[:57] + '…'}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys allowed in the table at that place."""
    import typing

    def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in typing.get_args(annotation):
            yield from models_in(inner)

    model: type[BaseModel] = Config
    for part in location:
        field = fields_of(model, registry.names()).get(part)
        if field is not None:
            model = next(models_in(field.annotation), model)
    return list(fields_of(model, registry.names()))
