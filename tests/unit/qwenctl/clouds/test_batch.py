from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenctl.clouds.base import Denied, Transient
from qwenctl.clouds.batch import MAX_IDS, Batch


class Cloud:
    """Knows the ids that begin with ``i``; notes each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.trouble: Callable[[Sequence[str]], None] = lambda ids: None

    def fetch(self, ids: Sequence[str]) -> dict[str, str]:
        self.calls.append(list(ids))
        self.trouble(ids)
        return {id_: f"{id_} seen {len(self.calls)}" for id_ in ids if id_.startswith("i")}


def ask_all(batch: Batch[str], ids: Sequence[str]) -> list[str | None]:
    together = threading.Barrier(len(ids))

    def ask(id_: str) -> str | None:
        together.wait(30)
        return batch.get(id_)

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(ask, ids))


def test_those_who_ask_at_the_same_time_share_a_call() -> None:
    cloud = Cloud()
    ids = [f"i-{number}" for number in range(20)]
    seen = ask_all(Batch(cloud.fetch, window=1.0), [*ids, *ids, "other"])
    assert cloud.calls == [sorted([*ids, "other"])]
    assert seen == [f"{id_} seen 1" for id_ in (*ids, *ids)] + [None]


def test_no_call_names_more_than_the_cloud_allows() -> None:
    cloud = Cloud()
    ids = [f"i-{number:03}" for number in range(2 * MAX_IDS + 30)]
    assert all(ask_all(Batch(cloud.fetch, window=1.0), ids))
    assert sorted(id_ for call in cloud.calls for id_ in call) == ids
    assert max(map(len, cloud.calls)) == MAX_IDS
    assert len(cloud.calls) <= 4


def test_who_asks_after_a_call_has_begun_does_not_get_its_answer() -> None:
    """It might be older than the question: the controller would take a stopped one for running."""
    cloud = Cloud()
    batch = Batch(cloud.fetch, window=0.0)
    begun, go_on = threading.Event(), threading.Event()

    def hold(ids: Sequence[str]) -> None:
        begun.set()
        assert go_on.wait(30)

    cloud.trouble = hold
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batch.get, "i-1")
        assert begun.wait(30)
        cloud.trouble = lambda ids: None
        assert batch.get("i-1") == "i-1 seen 2"
        go_on.set()
        assert first.result(30) is not None
    assert len(cloud.calls) == 2


def test_everybody_learns_that_the_cloud_did_not_answer() -> None:
    cloud = Cloud()

    def cut(ids: Sequence[str]) -> None:
        raise Transient("cut")

    cloud.trouble = cut
    batch = Batch(cloud.fetch, window=1.0)
    with ThreadPoolExecutor(3) as pool:
        for asked in [pool.submit(batch.get, f"i-{number}") for number in range(3)]:
            with pytest.raises(Transient):
                asked.result(30)
    assert len(cloud.calls) == 1
    cloud.trouble = lambda ids: None
    assert batch.get("i-1")  # and the next one asks anew


def test_one_that_is_refused_spoils_it_for_no_other() -> None:
    cloud = Cloud()

    def refuse(ids: Sequence[str]) -> None:
        if "i-secret" in ids:
            raise Denied("not this one")

    cloud.trouble = refuse
    batch = Batch(cloud.fetch, window=1.0)
    with ThreadPoolExecutor(2) as pool:
        refused, fine = pool.submit(batch.get, "i-secret"), pool.submit(batch.get, "i-mine")
        with pytest.raises(Denied):
            refused.result(30)
        assert fine.result(30)
