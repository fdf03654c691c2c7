"""Rows of the tables from a cloud's error codes to provider errors."""

from __future__ import annotations

from dataclasses import dataclass

from qwenctl.clouds.base import ProviderError


@dataclass(frozen=True)
class Meaning:
    """An error class, and a sentence on what happened and what to do."""

    kind: type[ProviderError]
    sentence: str
    about_account: bool = False
    """See `ProviderError.about_account`."""


def row(
    kind: type[ProviderError], sentence: str, codes: str, *, about_account: bool = False
) -> dict[str, Meaning]:
    """Return the entries for codes, separated by spaces, that mean the same."""
    return dict.fromkeys(codes.split(), Meaning(kind, sentence, about_account))
