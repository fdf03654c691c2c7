"""Texts of the pages, from ``locales/*.json``: one flat table a language, with the same keys.

``{name}`` marks a value that the templates fill in by ``str.format``, and the waiting page's
script, which gets the table as JSON, by itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

__all__ = ["negotiate", "text"]

_TEXTS: dict[str, dict[str, str]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in Path(__file__).parents[1].joinpath("locales").glob("*.json")
}


def negotiate(accept_language: str, forced: str) -> str:
    """Choose a visitor's language by the setting `language`, or else by ``Accept-Language``.

    Every kind of Chinese (zh-CN, zh-Hant-TW, …) gets ``zh``; who accepts no language that there is
    a table for gets ``en``.
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
    """Return the table of a language; English for a language without a table."""
    return _TEXTS.get(lang, _TEXTS["en"])
