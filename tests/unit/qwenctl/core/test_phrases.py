"""Sentences are translated whole, by the most specific phrase, or not at all."""

from __future__ import annotations

import time

import pytest

from qwenctl.core.phrases import Phrases

ENGLISH = {
    "for": "{gpu} is {phase} for {ago}",
    "for_because": "{gpu} is {phase} for {ago}: {cause}",
    "blocked": "by {who}, for another {left}",
    "ready": "ready",
    "who.block": "{who} (qwenctl block): {why}",
    "who.up": "{who} (qwenctl up)",
    "unblock.left": "{who} ({left} left)",
    "time.s": "{n} s",
    "time.min_s": "{n} min {n2} s",
}
OTHER = {
    "for": "{gpu}:{phase}:{ago}",
    "for_because": "{gpu}:{phase}:{ago}:{cause}",
    "blocked": "B {left} {who}",
    "ready": "BEREIT",
    "who.block": "W {who} {why}",
    "who.up": "U {who}",
    "unblock.left": "{who} NOCH {left}",
    "time.s": "{n} SEK",
    "time.min_s": "{n} MIN {n2} SEK",
}


@pytest.mark.parametrize(
    ("english", "other"),
    [
        ("ready", "BEREIT"),
        ("main is ready for 5 s", "main:BEREIT:5 SEK"),
        ("main is ready for 5.5 s: ready", "main:BEREIT:5.5 SEK:BEREIT"),
        ("by ada (qwenctl block): a, b, for another 7 s", "B 7 SEK W ada a, b"),
        ("ada (qwenctl block): a (b) (7 s left)", "W ada a (b) NOCH 7 SEK"),
        ("ada (qwenctl up) (1 min 52 s left)", "U ada NOCH 1 MIN 52 SEK"),
        ("by ada, for another day, for another 7 s", "B 7 SEK ada, for another day"),
        ("x s", "x s"),  # no number
        ("nobody knows this", "nobody knows this"),
        ("{who} is ready for {n}", "{who}:BEREIT:{n}"),  # braces of others are text
        ("", ""),
    ],
)
def test_it_translates(english: str, other: str) -> None:
    assert Phrases(ENGLISH, OTHER).translate(english) == other


@pytest.mark.parametrize("words", [" is x for y: z", "a (qwenctl block): ", ", for another , by "])
def test_a_long_text_of_somebody_else_takes_no_time(words: str) -> None:
    """It would take minutes by backtracking, and more calls in calls than Python allows."""
    phrases = Phrases(ENGLISH, OTHER)
    began = time.process_time()
    for number in range(20):
        phrases.translate(f"main is loading for {number} s: {words * 200}!")
        phrases.translate(f"by {words * 200}{number}")
    assert time.process_time() - began < 2.0


def test_words_that_are_there_twice_belong_to_the_later_text() -> None:
    assert Phrases(ENGLISH, OTHER).translate("a is b is c for 1 s: d: e for 2 s: f") == (
        "a:b is c:1 SEK:d: e for 2 s: f"
    )
