"""Sentences are translated whole, by the most specific phrase, or not at all."""

from __future__ import annotations

import pytest

from qwenctl.core.phrases import Phrases

ENGLISH = {
    "for": "{gpu} is {phase} for {ago}",
    "for_because": "{gpu} is {phase} for {ago}: {cause}",
    "blocked": "by {who}, for another {left}",
    "ready": "ready",
    "who.block": "{who} (qwenctl block): {why}",
    "time.s": "{n} s",
}
OTHER = {
    "for": "{gpu}:{phase}:{ago}",
    "for_because": "{gpu}:{phase}:{ago}:{cause}",
    "blocked": "B {left} {who}",
    "ready": "BEREIT",
    "who.block": "W {who} {why}",
    "time.s": "{n} SEK",
}


@pytest.mark.parametrize(
    ("english", "other"),
    [
        ("ready", "BEREIT"),
        ("main is ready for 5 s", "main:BEREIT:5 SEK"),
        ("main is ready for 5.5 s: ready", "main:BEREIT:5.5 SEK:BEREIT"),
        ("by ada (qwenctl block): a, b, for another 7 s", "B 7 SEK W ada a, b"),
        ("x s", "x s"),  # no number
        ("nobody knows this", "nobody knows this"),
        ("{who} is ready for {n}", "{who}:BEREIT:{n}"),  # braces of others are text
        ("", ""),
    ],
)
def test_it_translates(english: str, other: str) -> None:
    assert Phrases(ENGLISH, OTHER).translate(english) == other
