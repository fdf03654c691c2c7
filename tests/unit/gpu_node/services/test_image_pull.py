"""How far a pull is, from what the daemon says."""

from __future__ import annotations

from typing import Any

from gpu_node.services.image_pull import PullProgress


def event(layer: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": layer, "status": status, "progressDetail": detail}


def taken(*events: dict[str, Any]) -> PullProgress:
    progress = PullProgress()
    for one in events:
        progress.take(one)
    return progress


def test_nothing_is_known_at_first() -> None:
    assert taken().view().percent is None
    assert taken(event("a", "Pulling fs layer")).view().percent == 0.0


def test_download_and_unpacking_count_half_each() -> None:
    progress = taken(event("a", "Downloading", 50, 100))
    assert progress.view().percent == 25.0
    progress.take(event("a", "Download complete"))
    assert progress.view().percent == 50.0
    progress.take(event("a", "Extracting", 50, 100))
    assert progress.view().percent == 75.0
    progress.take(event("a", "Pull complete"))
    assert progress.view().percent == 100.0


def test_a_layer_that_waits_is_taken_for_a_usual_one() -> None:
    progress = taken(event("b", "Waiting"), event("a", "Downloading", 10**9, 10**9))
    assert progress.view().percent == 25.0
    assert progress.view().text == "1.0 GB / 2.0 GB"


def test_it_never_goes_back() -> None:
    progress = taken(event("a", "Downloading", 100, 100))
    before = progress.view().percent
    for late in ("b", "c", "d"):
        progress.take(event(late, "Pulling fs layer"))
    assert progress.view().percent == before


def test_what_is_here_already_does_not_count() -> None:
    progress = taken(
        event("latest", "Pulling from team/webui"),
        event("a", "Already exists"),
        event("b", "Download complete"),
        event("c", "Downloading", 5, 10),
    )
    assert progress.view().text == "0.0 MB / 0.0 MB"
    assert 22 < (progress.view().percent or 0) < 28


def test_odd_events_do_no_harm() -> None:
    progress = taken(
        {"status": "Digest: sha256:1"},
        {"id": "a", "status": None, "progressDetail": None},
        event("a", "Downloading", 20, 10),
    )
    assert progress.view().percent == 50.0
