"""The limit of open files of this process and of its children."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from qwenctl.lib import descriptors


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    setrlimit = resource.setrlimit
    monkeypatch.setattr(descriptors, "_first", None)
    yield soft, hard
    setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_becomes_the_hard_one_and_children_get_the_old_one(
    limits: tuple[int, int],
) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    most = descriptors.MOST if hard == resource.RLIM_INFINITY else min(hard, descriptors.MOST)
    assert descriptors.raise_limit() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    assert descriptors.raise_limit() == most
    assert descriptors.limit_for_children() == "256"


def test_a_limit_that_the_system_refuses_is_no_error(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """macOS has no hard limit, and accepts 10,240."""
    soft = min(limits[0], 1024)
    asked = []

    def setrlimit(_: int, both: tuple[int, int]) -> None:
        asked.append(both[0])
        if both[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert descriptors.raise_limit() == 10_240
    assert asked == [descriptors.MOST, 10_240]
