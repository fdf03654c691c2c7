"""Texts of the pages, from ``locales/*.json``: a flat table for each language.

``{name}`` marks a value, which the templates and the waiting page's script fill in. All tables have
the same keys.
"""

from __future__ import annotations

import json
from pathlib import Path

from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

_TEXTS: dict[str, dict[str, str]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in Path(__file__).parents[1].joinpath("locales").glob("*.json")
}


def negotiate(accept_language: str, forced: str) -> str:
    """Choose the language by the setting `language`, or else by ``Accept-Language``.

    Every variant of Chinese (zh-CN, zh-Hant-TW, …) is ``zh``; without an accepted language it is
    ``en``.
    """
    if forced in _TEXTS:
        return forced
    # Not `best_match`: it prefers an exact "zh;q=0.1" to "en-GB;q=1".
    for tag, quality in parse_accept_header(accept_language, LanguageAccept):
        primary = tag.replace("_", "-").partition("-")[0].lower()
        if quality > 0 and primary in _TEXTS:
            return primary
    return "en"


def text(lang: str) -> dict[str, str]:
    """Return the table of a language, or else the English table."""
    return _TEXTS.get(lang, _TEXTS["en"])
