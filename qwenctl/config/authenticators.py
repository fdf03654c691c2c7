"""Make the authenticators of third parties from the configuration."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from qwenctl.errors import ConfigError
from qwenctl.lib.text import in_words

ENTRY_POINTS = "qwenctl.authenticators"
"""The entry point group: callables that make an authenticator of ``[access.authenticators.NAME]``."""


def make_authenticator(name: str, settings: dict[str, Any]) -> Any:
    """Make an installed authenticator; whatever it is, it has `identify`.

    Raises:
        ConfigError: it is not installed, cannot be loaded, or refuses its settings.
    """
    place = f"access.authenticators.{name}"
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise ConfigError(f"{place}: no such authenticator is installed; known: {known}")
    try:
        authenticator = points[name].load()(settings)
        _ = authenticator.identify
    except Exception as error:  # others wrote it: whatever it raises
        raise ConfigError(f"{place}: {points[name].value}: {in_words(error)}") from None
    return authenticator
