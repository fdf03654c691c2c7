"""Rows of the tables that say what a cloud's error codes mean."""

from __future__ import annotations

from dataclasses import dataclass

from qwenctl.clouds.base import ProviderError

__all__ = ["Meaning", "row"]


@dataclass(frozen=True)
class Meaning:
    """The class of an error, and a sentence on what happened and what to do."""

    kind: type[ProviderError]
    sentence: str


def row(kind: type[ProviderError], sentence: str, codes: str) -> dict[str, Meaning]:
    """Return the table's entries for codes that mean the same; spaces part them."""
    return dict.fromkeys(codes.split(), Meaning(kind, sentence))
