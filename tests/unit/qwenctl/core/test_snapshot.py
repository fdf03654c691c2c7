"""What a snapshot says of its GPU."""

from __future__ import annotations

from typing import Any

import pytest

from qwenctl.core import leases
from qwenctl.core.snapshot import Lease, Snapshot

NOW = 1_700_000_000.0
FOREVER = float("inf")


def snapshot(*names: str, blocks: tuple[Lease, ...] = (), **fields: Any) -> Snapshot:
    held = tuple(Lease(name, NOW + 60) for name in names)
    return Snapshot("main", NOW, fields.pop("state", {}), held, blocks, **fields)


@pytest.mark.parametrize(
    ("names", "working"),
    [
        ((), False),
        ((leases.request("ada"), leases.pin("ada"), "prewarm:morning", "adopted:x"), False),
        ((leases.busy("main"),), True),
        ((leases.inflight("proxy"),), True),
        ((leases.request("ada"), leases.busy("main")), True),
        (("busyness:main", "inflight-of:x"), False),
    ],
)
def test_work_is_what_a_node_or_a_proxy_vouches_for(names: tuple[str, ...], working: bool) -> None:
    assert snapshot(*names).working is working


def test_a_block_outweighs_any_lease() -> None:
    block = Lease(leases.maintenance("ada"), FOREVER)
    assert snapshot("pin:ada").wanted
    assert not snapshot("pin:ada", blocks=(block,)).wanted
    assert not snapshot().wanted


def test_the_next_to_end_is_a_lease_or_a_block_that_ends() -> None:
    endless = Lease(leases.maintenance("ada"), FOREVER)
    assert snapshot(blocks=(endless,)).next_expiry is None
    assert snapshot("pin:ada", blocks=(endless,)).next_expiry == NOW + 60
    soon = Lease("off-hours:night", NOW + 5)
    assert snapshot("pin:ada", blocks=(endless, soon)).next_expiry == NOW + 5


@pytest.mark.parametrize(("left", "leader"), [(0.001, "me"), (0.0, ""), (-1.0, "")])
def test_who_held_an_expired_lock_leads_no_more(left: float, leader: str) -> None:
    lock = {"owner": "me", "epoch": "3", "expiry": f"{(NOW + left) * 1000:.0f}"}
    assert snapshot(lock=lock).leader == leader


def test_a_node_that_was_heard_in_the_future_was_heard_now() -> None:
    node = {"boot_id": "b", "seen_at": f"{(NOW + 5) * 1000:.0f}", "state": "ready"}
    assert snapshot(node=node).node_view.heartbeat_age == 0.0
