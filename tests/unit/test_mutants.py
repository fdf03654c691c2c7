"""The table of planted faults fits the source."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.run import ROOT, Mutant, read_table


@pytest.mark.parametrize("mutant", read_table(), ids=lambda mutant: mutant.name)
def test_it_can_be_planted(mutant: Mutant) -> None:
    assert mutant.fits(), "its text is not in the file exactly once: follow the change"
    planted = mutant.planted((ROOT / mutant.file).read_text("utf-8"))
    if mutant.file.endswith(".py"):
        ast.parse(planted)
    for test in mutant.tests:
        assert (ROOT / test).exists(), test


def test_no_two_have_one_name() -> None:
    names = [(mutant.file, mutant.name) for mutant in read_table()]
    assert len(set(names)) == len(names)
