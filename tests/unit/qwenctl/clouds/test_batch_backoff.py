"""How often a cloud is asked that refuses, over virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenctl.clouds.base import (
    Denied,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.clouds.batch import DENIED_PAUSES, PAUSES, PROBES, Batch
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast

LOOK = 15.0
"""Seconds after which a controller looks again that was refused."""


class Account:
    """A hundred instances whose controllers look every `LOOK` seconds, each at a time of its own."""

    def __init__(self, size: int = 100) -> None:
        self.clock = VirtualClock()
        self.ids = [f"i-{number:03}" for number in range(size)]
        self.refuse: Callable[[Sequence[str]], ProviderError | None] = lambda ids: None
        self.calls: list[tuple[float, tuple[str, ...]]] = []
        self.batch: Batch[str] = Batch(self._fetch, window=0.0, clock=self.clock)
        self.seen: dict[str, str | ProviderError | None] = {}
        self.served_at: dict[str, float] = {}

    def _fetch(self, ids: Sequence[str]) -> dict[str, str]:
        self.calls.append((self.clock(), tuple(ids)))
        if error := self.refuse(ids):
            raise error
        return {id_: id_ for id_ in ids}

    def look(self, id_: str) -> None:
        try:
            self.seen[id_] = self.batch.get(id_)
            self.served_at[id_] = self.clock()
        except ProviderError as error:
            self.seen[id_] = error

    def run(self, seconds: float) -> int:
        """Let time pass; return the number of calls."""
        before, end = len(self.calls), self.clock() + seconds
        while self.clock() < end:
            for id_ in self.ids:
                self.look(id_)
                self.clock.advance(LOOK / len(self.ids))
        return len(self.calls) - before

    def run_together(self, seconds: float) -> int:
        """The same with controllers that look at the same moment."""
        before, end = len(self.calls), self.clock() + seconds
        self.batch._window = 0.1
        with ThreadPoolExecutor(len(self.ids)) as pool:
            while self.clock() < end:
                list(pool.map(self.look, self.ids))
                self.clock.advance(60.0)
        self.batch._window = 0.0
        return len(self.calls) - before


def of_account(error: ProviderError) -> ProviderError:
    error.about_account = True
    return error


def refusing(bad: set[str]) -> Callable[[Sequence[str]], ProviderError | None]:
    return lambda ids: Denied("not allowed", cloud_code="NoPermission") if bad & set(ids) else None


@pytest.mark.parametrize(
    ("error", "an_hour"),
    [
        (of_account(Denied("wrong key")), 3600 / DENIED_PAUSES[1] + 5),
        (Throttled("slower"), 3600 / PAUSES[Throttled][1] + 10),
        (Transient("cut"), 3600 / PAUSES[Transient][1] + 10),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_account_that_is_refused_is_asked_rarely(error: ProviderError, an_hour: float) -> None:
    account = Account()
    account.refuse = lambda ids: error
    assert account.run(3600.0) <= an_hour
    assert all(type(seen) is type(error) for seen in account.seen.values())
    account.refuse = lambda ids: None
    account.run(75.0)
    assert list(account.seen.values()) == account.ids


@pytest.mark.parametrize("together", [False, True])
def test_a_hundred_denied_instances_cost_few_calls(together: bool) -> None:
    account = Account()
    account.refuse = refusing(set(account.ids))
    run = account.run_together if together else account.run
    assert run(600.0) <= 2 * 100 + 13 * (100 / PROBES + 1)
    assert run(1800.0) <= 31 * (100 / PROBES + 1)
    assert all(isinstance(seen, Denied) for seen in account.seen.values())


def test_a_right_granted_to_all_is_noticed_within_a_minute_and_a_look() -> None:
    account = Account()
    account.refuse = refusing(set(account.ids))
    account.run(3600.0)
    account.refuse = lambda ids: None
    account.run(DENIED_PAUSES[1] + LOOK)
    assert list(account.seen.values()) == account.ids
    assert account.run_together(600.0) <= 20


def test_a_right_granted_to_one_of_many_is_noticed_in_minutes() -> None:
    account = Account()
    account.refuse = refusing(set(account.ids))
    account.run(3600.0)
    granted_at = account.clock()
    account.refuse = refusing(set(account.ids) - {"i-077"})
    account.run(PROBES * (DENIED_PAUSES[1] + LOOK))
    assert granted_at <= account.served_at["i-077"]
    assert account.seen["i-077"] == "i-077"
    assert set(account.served_at) == {"i-077"}


def test_one_denied_instance_is_found_by_halving() -> None:
    account = Account()
    account.refuse = refusing({"i-042"})
    calls = account.run_together(60.0)
    assert calls <= 2 * (1 + 2 * 7)  # in one or two rounds
    assert isinstance(account.seen["i-042"], Denied)
    assert set(account.served_at) == set(account.ids) - {"i-042"}
    account.run(3600.0)
    alone = [ids for _, ids in account.calls[calls:] if "i-042" in ids]
    assert alone == [("i-042",)] * len(alone)
    assert 55 <= len(alone) <= 65


@pytest.mark.parametrize("kind", [Denied, NotFound, ProviderError])
def test_half_of_the_instances_refused_leave_the_others_alone(kind: type[ProviderError]) -> None:
    account = Account()
    bad = set(account.ids[::2])
    account.refuse = lambda ids: kind("no") if bad & set(ids) else None
    account.run_together(60.0)
    before = len(account.calls)
    for _ in range(20):
        account.run_together(60.0)
        for id_ in account.ids:
            if id_ in bad:
                assert type(account.seen[id_]) is kind
            else:
                assert account.seen[id_] == id_
                assert account.served_at[id_] == account.clock() - 60.0
    mixed = [ids for _, ids in account.calls[before:] if bad & set(ids) and set(ids) - bad]
    assert mixed == []  # no call for good instances is spoilt again


def test_absence_is_always_asked_anew() -> None:
    account = Account(2)
    account.refuse = lambda ids: NotFound("no such instance") if "i-001" in ids else None
    for count in range(1, 6):
        account.look("i-001")
        assert isinstance(account.seen["i-001"], NotFound)
        assert len(account.calls) == count
    account.refuse = lambda ids: None
    account.look("i-001")
    assert account.seen["i-001"] == "i-001"


def test_a_throttled_split_asks_no_further() -> None:
    account = Account()

    def refuse(ids: Sequence[str]) -> ProviderError:
        return Denied("no") if len(account.calls) == 1 else Throttled("slower")

    account.refuse = refuse
    assert account.run_together(60.0) <= 4
    assert all(isinstance(seen, Throttled) for seen in account.seen.values())


@pytest.mark.parametrize(
    "error", [Transient("cut"), Throttled("slower"), Denied("no"), of_account(Denied("wrong key"))]
)
def test_the_first_failure_makes_nobody_wait(error: ProviderError) -> None:
    account = Account(1)
    account.refuse = lambda ids: error if len(account.calls) == 1 else None
    account.look("i-000")
    account.look("i-000")
    assert account.seen["i-000"] == "i-000"


def test_an_error_that_is_remembered_does_not_grow() -> None:
    """An exception that is raised again and again collects a traceback with each."""
    account = Account(1)
    account.refuse = refusing({"i-000"})
    for _ in range(100):
        account.look("i-000")
    error, depth = account.seen["i-000"], 0
    assert isinstance(error, Denied)
    assert error.cloud_code == "NoPermission"
    trace = error.__traceback__
    while trace:
        depth, trace = depth + 1, trace.tb_next
    assert depth < 10
