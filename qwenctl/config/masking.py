"""Mask secrets before a configuration is shown."""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "masked",
]

MASK = "********"

_SECRET_KEY = re.compile(
    r"secret|token|passw|hash|api[-_]?key|authorization|cookie|credential", re.IGNORECASE
)
_SECRET_OPTION = re.compile(r"^--?[\w-]*(secret|token|passw|key|credential)[\w-]*", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(\w[\w+.-]*://)[^/?#\s]*@")
_URL_QUERY = re.compile(r"([?&][^=&\s]*(?:secret|token|passw|key)[^=&\s]*=)[^&\s]+", re.IGNORECASE)


def masked(value: Any, key: str = "") -> Any:
    """The same data without secrets: by the name of the key, the values of ``env`` tables, options
    of commands that look like a secret, and logins in URLs."""
    if isinstance(value, dict):
        if key == "env":
            return dict.fromkeys(value, MASK)
        return {name: masked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        if key in ("command", "entrypoint"):
            return _masked_command(value)
        return [masked(v, key) for v in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key) and not key.endswith("_file"):
        return MASK
    return _URL_QUERY.sub(rf"\1{MASK}", _URL_LOGIN.sub(rf"\1{MASK}@", value))


def _masked_command(words: list[str]) -> list[str]:
    result: list[str] = []
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        option = _SECRET_OPTION.match(word)
        if option and "=" in word:
            result.append(f"{option.group()}={MASK}")
        elif _SECRET_OPTION.fullmatch(before) and not word.startswith("-"):
            result.append(MASK)
        else:
            result.append(masked(word))
    return result
