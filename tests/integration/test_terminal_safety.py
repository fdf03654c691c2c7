"""Strangers' text cannot reach the operator's terminal as control characters."""

from __future__ import annotations

from qwenctl.store import Store

EVIL = "POST /\x1b[31mred\r\nsecond line\x9b"


def test_reasons_and_actors_are_made_plain(store: Store) -> None:
    store.demand("main", "request:a", 60, reason=EVIL, actor=EVIL)
    store.pin("main", "pin:a", 60, reason=EVIL, actor=EVIL)
    store.release("main", actor=EVIL, reason=EVIL)
    store.block("main", "maintenance:a", 60, reason=EVIL, actor=EVIL)
    snapshot = store.snapshot("main")
    shown = [text for lease in snapshot.blocks for text in (lease.reason, lease.actor)]
    shown += [value for event in store.events("main") for value in event.fields.values()]
    assert any("\\x1b[31mred" in text for text in shown)
    assert all(text.isprintable() for text in shown)
