"""Any number of clients: the state, and what it costs to read it, stay small."""

from __future__ import annotations

import ipaddress

import pytest

from qwenctl.core.events import EventKind
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Lock, Touch
from qwenctl.core.wakes import Outcome, wakes
from qwenctl.store.store import Store
from tests.integration.qwenctl.store.store_calls import GPU, bring, leases
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast

TTL = 600.0


def ask(store: Store, address: str, *, session: str = "", key: str = "", tenant: str = "") -> str:
    who = Identity(address=address, session=session, key_id=key, tenant=tenant)
    store.demand(GPU, who.lease, TTL, reason="POST /x", actor=who.name)
    return who.lease


def flood(store: Store, count: int, first: str, stride: int = 1) -> None:
    start = ipaddress.ip_address(first)
    for number in range(count):
        ask(store, str(start + number * stride))


def test_few_clients_have_a_lease_each(store: Store) -> None:
    flood(store, 200, "198.51.100.0")
    assert len(leases(store)) == 200


@pytest.mark.parametrize(
    ("first", "stride"),
    [("10.0.0.0", 1), ("10.0.0.0", 257), ("2001:db8::1", 1), ("2001:db8::1", 2**64 + 7)],
)
def test_many_anonymous_clients_share_leases(store: Store, first: str, stride: int) -> None:
    flood(store, 3000, first, stride)
    assert len(leases(store)) <= 2 * 256 + 1


def test_whoever_had_a_lease_keeps_it_and_others_share_by_network(
    store: Store, clock: VirtualClock
) -> None:
    before = ask(store, "192.0.2.1")
    flood(store, 300, "10.0.0.0")
    clock.advance(60)
    ask(store, "192.0.2.1")
    for address in ("203.0.113.5", "203.0.113.77", "::ffff:203.0.113.78"):
        ask(store, address)
    for address in ("2001:db8:1:2::3", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2:ffff::"):
        ask(store, address)
    page = "request:203.0.114.5#a"  # of one person's page, where there is a choice of GPUs
    store.demand(GPU, page, TTL, reason="page", actor="203.0.114.5")
    ask(store, "::1")
    ask(store, "192.0.2.9", session="abc")
    ask(store, "192.0.2.9", key="ci")
    ask(store, "203.0.113.5", tenant="acme")
    now = store.snapshot(GPU)
    young = {lease.name for lease in now.leases if lease.expiry > now.now + TTL - 1}
    assert young == {
        before,
        "request:203.0.113.0/24",
        "request:203.0.114.0/24",
        "request:2001:db8:1:2::/64",
        "request:0:0:0:0::/64",
        "request:others",
        "request:key:ci",
        "request:acme/203.0.113.0/24",
    }
    [shared] = [lease for lease in now.leases if lease.name == "request:203.0.113.0/24"]
    assert shared.actor == "203.0.113.0/24"


def test_once_the_flood_is_over_each_has_a_lease_again(store: Store, clock: VirtualClock) -> None:
    flood(store, 3000, "10.0.0.0")
    clock.advance(TTL + 1)
    name = ask(store, "203.0.113.5")
    assert set(leases(store)) == {name}


def test_use_that_is_written_back_is_bounded_too(store: Store, lock: Lock) -> None:
    bring(store, lock, Phase.READY)
    touches = [Touch(f"request:10.1.{n // 250}.{n % 250}", TTL, 0.0) for n in range(3000)]
    store.touch(GPU, "inflight:p", 30.0, touches, actor="p")
    assert len(leases(store)) <= 2 * 256 + 2
    assert "request:10.1.11.0/24" in leases(store)


def test_pins_windows_and_work_are_never_merged(store: Store, lock: Lock) -> None:
    bring(store, lock, Phase.READY)
    flood(store, 3000, "10.0.0.0")
    store.pin(GPU, "pin:ada", 60, reason="up", actor="ada")
    now = store.snapshot(GPU).now
    store.schedule(GPU, "prewarm:morning", now, now + 60, reason="x", actor="x")
    store.touch(GPU, "inflight:p", 30.0, [], actor="p")
    assert {"pin:ada", "prewarm:morning", "inflight:p"} <= set(leases(store))


def test_a_flood_pushes_no_wake_out_of_the_history(
    store: Store, lock: Lock, clock: VirtualClock
) -> None:
    ask(store, "192.0.2.1")
    bring(store, lock, Phase.READY)
    for hour in range(10):
        flood(store, 1000, f"10.{hour}.0.0", 300)
        clock.advance(TTL / 2)
    events = store.events(GPU, 200)
    [wake] = wakes(events)
    assert wake.outcome is Outcome.READY
    assert sum(event.kind is EventKind.LEASE for event in store.events(GPU, 100_000)) <= 102
