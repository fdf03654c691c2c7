"""Leases in plain words: who uses the GPU."""

from __future__ import annotations

import pytest

from qwenctl.control.controller import owner_name
from qwenctl.core.identity import Identity
from qwenctl.core.words import name_words


@pytest.mark.parametrize(
    "identity",
    [
        Identity(address="127.0.0.1"),
        Identity(address="2001:db8::7"),
        Identity(key_id="ci"),
        Identity(member="ada@lab.example"),
        Identity(session="4f2a9c"),
    ],
)
@pytest.mark.parametrize("slot", ["", "#1"])
def test_a_visitor_is_named_and_not_the_proxy_that_wrote_the_lease(
    identity: Identity, slot: str
) -> None:
    for actor in (identity.name, "", owner_name()):
        assert name_words(identity.lease + slot, actor, "request") == f"a visitor ({identity.name})"


def test_a_network_is_named_whole() -> None:
    assert name_words("request:10.0.7.0/24", owner_name()) == "a visitor (10.0.7.0/24)"
