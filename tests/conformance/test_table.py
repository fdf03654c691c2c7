"""Every row of the tables, on every plane that it is for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.conformance.case import Case
from tests.conformance.compare import differences, run
from tests.conformance.planes import PLANES, Planes
from tests.conformance.table import TABLE
from tests.conformance.table.fronts import FAILS, READS_ITSELF


def rows() -> Iterator[ParameterSet]:
    """Each plane's rows together, and in one process: its servers start once."""
    for plane in PLANES:
        for topic, cases in TABLE.items():
            for case in cases:
                if plane not in case.on:
                    continue
                marks: list[pytest.MarkDecorator | pytest.Mark] = [
                    pytest.mark.xdist_group("conformance-" + plane.partition("-")[0])
                ]
                if why := case.failure(plane):
                    marks.append(pytest.mark.xfail(strict=True, reason=why))
                yield pytest.param(plane, case, id=f"{plane}-{topic}: {case.name}", marks=marks)


@pytest.mark.parametrize(("plane", "case"), list(rows()))
def test_row(planes: Planes, plane: str, case: Case) -> None:
    happened = run(case, planes.get(plane))
    found = [differences(outcome, happened) for outcome in case.allowed(plane)]
    assert not all(found), f"RFC {case.rfc}: {found}{happened}"


def test_rows_have_names_of_their_own() -> None:
    names = [f"{topic}: {case.name}" for topic, cases in TABLE.items() for case in cases]
    assert len(names) == len(set(names))
    unknown = {*FAILS, *(row for rows in READS_ITSELF.values() for row in rows)} - {*names}
    assert not unknown
