"""The one codec of the history, and that the Lua scripts write what it knows."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path

import pytest

from qwenctl.core.events import FIELDS, VERSION, EventKind, decode, encode
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase
from tests.support.paths import ROOT

LUA = ROOT / "qwenctl/store/lua"

FAILURE = Failure("agent_silent", "no call", 2, 1234.5, instance_is_bad=True)


def lua_code(path: Path) -> str:
    return re.sub(r"--.*", "", path.read_text())


def written_by_lua() -> list[tuple[str, frozenset[str]]]:
    """Kind and fields of each event that a script writes; a kind that is a variable is left out."""
    found = []
    for path in sorted(LUA.glob("*.lua")):
        for kind, rest in re.findall(r"\bevent\('([\w-]+)',(.*?)\)\n", lua_code(path), re.DOTALL):
            parts = re.split(r",\s*(?![^()]*\))", rest)
            found.append((kind, frozenset(part.strip().strip("'") for part in parts[::2])))
    return found


def test_lua_writes_the_kinds_and_fields_of_the_codec() -> None:
    written = written_by_lua()
    calls = sum(len(re.findall(r"\bevent\(", lua_code(path))) for path in LUA.glob("*.lua"))
    # The definition, and `schedule`, which writes a lease or a block.
    assert calls == len(written) + 2
    assert (
        "event(kind, 'name', name, 'cause', ARGV[6], 'actor', ARGV[7], 'expiry', num(ends))"
        in (LUA / "schedule.lua").read_text()
    )
    for kind, fields in written:
        assert fields == FIELDS[EventKind(kind)], kind
    assert {kind for kind, _ in written} == set(EventKind) - {EventKind.FIRST_BYTE}


def test_lua_writes_the_present_version() -> None:
    assert re.findall(r"'v', '(\d+)'", lua_code(LUA / "prelude.lua")) == [str(VERSION)]


@pytest.mark.parametrize("kind", EventKind)
def test_what_is_written_is_read(kind: EventKind) -> None:
    fields = {name: f"<{name}>" for name in FIELDS[kind]}
    stored = encode(kind, **fields)
    assert all(isinstance(value, str) for value in stored.values())
    event = decode("1700000000123-4", {**stored, "time": "1700000000500"})
    assert (event.id, event.time) == ("1700000000123-4", 1700000000.5)
    assert (event.kind, event.format, event.fields) == (kind, VERSION, fields)
    assert event.kind is kind
    for name in fields.keys() - {"from", "to", "failure", "cut", "expiry"}:
        assert getattr(event, name, f"<{name}>") == f"<{name}>"


def test_fields_that_a_kind_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="no field of 'first-byte': failure, name"):
        encode(EventKind.FIRST_BYTE, actor="p", name="x", failure="")


def test_a_transition_is_typed() -> None:
    event = decode(
        "5-0",
        {"kind": "transition", "from": "loading", "to": "failed", "failure": FAILURE.encode()},
    )
    assert (event.source, event.to, event.failure) == (Phase.LOADING, Phase.FAILED, FAILURE)
    assert (event.time, event.format, event.cause) == (0.005, 1, "")


def test_a_lease_and_a_down_are_typed() -> None:
    assert decode("1-0", {"kind": "lease", "expiry": "2500"}).expiry == 2.5
    assert decode("1-0", {"kind": "block", "expiry": "inf"}).expiry == inf
    assert decode("1-0", {"kind": "lease"}).expiry == inf
    assert decode("1-0", {"kind": "down", "cut": "1"}).force_stop
    assert not decode("1-0", {"kind": "down", "cut": "0"}).force_stop


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"kind": "spending", "v": "7", "euros": "3", "actor": "bob", "to": "off"},
        {"kind": "transition", "v": "2", "from": "off", "to": "hibernating", "failure": "[]"},
        {"kind": "lease", "v": "2.1", "expiry": "never", "time": "soon"},
    ],
)
def test_events_of_a_newer_version_stay_readable(stored: dict[str, str]) -> None:
    event = decode("2000-0", stored)
    assert event.time == 2.0
    assert event.kind == stored.get("kind", "")
    assert event.fields == {k: v for k, v in stored.items() if k not in ("kind", "v", "time")}
    assert (event.to, event.failure, event.expiry) == (None, None, inf)
    assert event.actor == stored.get("actor", "")


def test_a_kind_is_printed_as_it_is_stored() -> None:
    assert f"{EventKind.FIRST_BYTE} {EventKind.DOWN!s}" == "first-byte down"
