"""A request's transfer coding: chunked, or none."""

from __future__ import annotations

import pytest

from proxy.http.framing import coding_problem


@pytest.mark.parametrize(
    ("codings", "refused"),
    [
        ([], False),
        (["chunked"], False),
        (["Chunked"], False),
        (["identity"], True),
        (["gzip, chunked"], True),
        (["identity, chunked"], True),
        (["identity", "chunked"], True),
        (["chunked", "chunked"], True),
        ([", chunked"], True),
        (["chunked,"], True),
        (["chunked;a=b"], True),
        ([""], True),
    ],
)
def test_codings(codings: list[str], refused: bool) -> None:
    headers = [(b"accept", b"*/*")]
    headers += [(b"transfer-encoding", coding.encode()) for coding in codings]
    assert bool(coding_problem(headers)) is refused
