"""Find a provider by its name, and import only the parts that are used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from qwenctl.errors import ConfigError

ENTRY_POINTS = "qwenctl.providers"
"""The entry point group of third parties: a package with the same files as a cloud's folder here, or
a module with `Settings`, `make` and optionally `checks` and `admin`."""

BUILT_IN = {
    "aliyun": "qwenctl.clouds.aliyun",
    "aws": "qwenctl.clouds.aws",
    "local": "qwenctl.clouds.local",
}

_FILES = {"Settings": "settings", "make": "provider", "checks": "checks", "admin": "admin"}
"""The file of a cloud's folder that holds each part; `admin` is the file itself."""


def names() -> list[str]:
    """Return the names of all installed providers."""
    return sorted({*BUILT_IN, *_third_parties()})


def part(provider: str, name: str) -> Any:
    """Return `Settings`, `make`, `checks` or `admin` of a provider, or None.

    Raises:
        ConfigError: no such provider is installed, or it cannot be imported.
    """
    if provider in BUILT_IN:
        return _part_of(import_module(BUILT_IN[provider]), name)
    point = _third_parties().get(provider)
    if point is None:
        raise ConfigError(f"no such provider is installed; known: {', '.join(names())}")
    try:
        return _part_of(point.load(), name)
    except Exception as error:  # third-party code may raise anything
        raise ConfigError(f"cannot load {point.value}: {error}") from None


def settings_type(provider: str) -> Any:
    """Return the model of ``[gpu.NAME.<provider>]``, or None."""
    try:
        return part(provider, "Settings")
    except ConfigError:
        return None


def _part_of(found: Any, name: str) -> Any:
    package, file = getattr(found, "__name__", ""), _FILES[name]
    if not hasattr(found, "__path__"):
        return getattr(found, name, None)
    if find_spec(f"{package}.{file}") is None:
        return None
    module = import_module(f"{package}.{file}")
    return module if name == file == "admin" else getattr(module, name)


def _third_parties() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
