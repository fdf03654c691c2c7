"""Translate finished sentences by two tables of phrases with the same keys and placeholders.

Sentences are recorded, compared and printed as JSON in English; only what a person reads in a
terminal is translated, at the last moment. What no phrase fits stays English.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache

_PLACE = re.compile(r"\{(\w+)\}")
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SPAN = rf"less than {_NUMBER} s|{_NUMBER} (?:s|min|h|d)(?: {_NUMBER} (?:s|min|h))?"
_DEEPEST = 8
"""How deep a sentence is translated inside sentences; beyond, its text is somebody else's."""


class Phrases:
    """Two tables of phrases; a phrase is a text with ``{placeholders}``.

    A placeholder ``n``, ``n2`` stands for a number, and ``left`` for a duration; all others for any
    text, which is translated, too.
    """

    def __init__(self, english: Mapping[str, str], other: Mapping[str, str]) -> None:
        self._english, self._other = english, other
        self.translate = lru_cache(1024)(self._translate)

    @cached_property
    def _plain(self) -> dict[str, str]:
        return {text: self._other[key] for key, text in self._english.items() if "{" not in text}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """Return pattern and translation of each phrase, the most specific first.

        Phrases ``who.…`` are parts of sentences, and last: their free text would swallow the rest.
        """
        keys = [key for key, text in self._english.items() if "{" in text]
        keys.sort(
            key=lambda key: (key.startswith("who."), -len(_PLACE.sub("", self._english[key])))
        )
        return [(_pattern(self._english[key]), self._other[key]) for key in keys]

    def _translate(self, text: str, depth: int = 0) -> str:
        """Return the translation of a sentence, or the sentence where no phrase fits."""
        if text in self._plain:
            return self._plain[text]
        if depth > _DEEPEST:
            return text
        for pattern, other in self._patterns:
            if found := pattern.fullmatch(text):
                return self._filled(other, found, depth + 1)
        return text

    def _filled(self, other: str, found: re.Match[str], depth: int) -> str:
        return _PLACE.sub(lambda place: self.translate(found[place[1]], depth), other)


def _pattern(text: str) -> re.Pattern[str]:
    """Return the pattern of a phrase. It takes linear time, however repetitive a text is.

    What follows a free text is taken where it stands first: in a lookahead, which does not
    backtrack. For texts between fixed words that finds all that backtracking would find.
    """
    literal, *rest = _PLACE.split(text)
    pieces, free = [re.escape(literal)], ""
    for name, literal in zip(rest[::2], rest[1::2]):
        if re.fullmatch(r"n\d?", name):
            pieces[-1] += f"(?P<{name}>{_NUMBER})"
        elif name == "left":
            pieces[-1] += f"(?P<{name}>{_SPAN})"
        else:
            pieces[-1] = _first(free, pieces[-1])
            pieces.append("")
            free = name
        pieces[-1] += re.escape(literal)
    last = f"(?P<{free}>.+?)" if free else ""
    return re.compile("".join(pieces[:-1]) + last + pieces[-1], re.DOTALL)


def _first(free: str, following: str) -> str:
    """Return the pattern of a free text up to where the following stands first."""
    if not free:
        return following
    return f"(?=(?P<{free}>.+?)(?P<_{free}>{following}))(?P={free})(?P=_{free})"
