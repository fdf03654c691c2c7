"""The language of what people read in the terminal: English, or Chinese by the environment.

JSON, the history and logs are English always, and so are exit codes and names of settings.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

from qwenctl.core.phrases import Phrases

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_VARIABLES = ("QWENCTL_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
"""By precedence; the last three as in POSIX, 8.2."""


def language(environment: Mapping[str, str] = os.environ) -> str:
    """Return ``zh`` where the environment asks for Chinese, or else ``en``."""
    value = next((environment[name] for name in _VARIABLES if environment.get(name)), "")
    return "zh" if re.match(r"zh(?![a-z])", value.lower()) else "en"


def table(name: str) -> dict[str, str]:
    """Return the phrases of a language."""
    path = Path(__file__).parents[2] / "locales" / f"{name}.json"
    return cast("dict[str, str]", json.loads(path.read_text(encoding="utf-8")))


@lru_cache
def _phrases(name: str) -> Phrases:
    return Phrases(table("en"), table(name))


def said(text: str) -> str:
    """Return a text in the user's language; a translated text has no colours."""
    name = language()
    if name == "en":
        return text
    bare = _COLOUR.sub("", text)
    words = bare.strip()
    other = _phrases(name).translate(words)
    return text if other == words else bare.replace(words, other, 1)


def padded(text: str, width: int) -> str:
    """Return a label in the user's language, filled to a width of terminal columns."""
    label = said(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in label)
    return label + " " * max(0, width - len(label) - wide)
