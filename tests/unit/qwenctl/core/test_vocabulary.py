"""Words that are stored or sent have one owner: kinds of leases, codes of failures, kinds of events,
phases. No other module spells them out."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwenctl.clouds.base import ProviderError
from qwenctl.core import failures, leases
from qwenctl.core.events import EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase

ROOT = Path(__file__).parents[4]
LUA = ROOT / "qwenctl/store/lua"


@dataclass(frozen=True)
class Vocabulary:
    """Words, the modules that may spell them, and the names of what holds one of them."""

    words: frozenset[str]
    owners: frozenset[str]
    names: frozenset[str]
    """`x.NAME`, `NAME`, `x["NAME"]` or `x.get("NAME")` that a word is compared with."""
    prefix: bool = False
    """Whether a word begins longer ones: ``pin:anna``."""


VOCABULARIES = [
    Vocabulary(
        leases.LEASES | leases.BLOCKS,
        frozenset({"qwenctl/core/leases.py"}),
        frozenset({"kind"}),
        prefix=True,
    ),
    Vocabulary(
        frozenset(failures.MEANINGS),
        frozenset({"qwenctl/core/failures.py"}),
        frozenset({"code"}),
    ),
    Vocabulary(
        frozenset(kind.value for kind in EventKind),
        frozenset({"qwenctl/core/events.py"}),
        frozenset({"kind"}),
    ),
    Vocabulary(
        frozenset(phase.value for phase in Phase),
        frozenset({"qwenctl/core/lifecycle.py"}),
        frozenset({"phase", "phases", "from", "to", "source"}),
    ),
]

PLAIN = re.compile(r"[a-z]+")
"""A word that means other things elsewhere too; it is looked for in comparisons only."""

ELSEWHERE = {
    "not_found": {"proxy/app.py", "proxy/control/pages.py"},  # the code of an HTTP problem
    "no_capacity": {"qwenctl/clouds/local/settings.py"},  # a setting: which failure to play
}
"""Modules in which a word means something else."""


def names_in(node: ast.expr) -> set[str]:
    """The names that an expression reads its value from."""
    if isinstance(node, ast.Attribute):
        return names_in(node.value) if node.attr == "value" else {node.attr}
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return {str(node.slice.value)}
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called == "get" and node.args and isinstance(node.args[0], ast.Constant):
            return {str(node.args[0].value)}
    return set()


def texts_in(node: ast.expr) -> Iterator[ast.Constant]:
    """The strings of an expression: itself, or what it lists."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        for element in node.elts:
            yield from texts_in(element)


@functools.cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(source)))


def spelled(source: str, path: str, vocabulary: Vocabulary) -> Iterator[str]:
    """Each place of a source where a word is spelled out, as ``path:line: word``."""
    if path in vocabulary.owners:
        return
    found: set[tuple[int, str]] = set()
    for node in nodes_of(source):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if vocabulary.names & set().union(*map(names_in, sides)):
                found |= {(t.lineno, str(t.value)) for side in sides for t in texts_in(side)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            word, colon, _ = node.value.partition(":")
            plain = PLAIN.fullmatch(word)
            if (
                (vocabulary.prefix and colon and word == node.value[:-1])
                or not (plain or colon)
                or (vocabulary.prefix and colon and re.fullmatch(r"[\w-]+:[\w-]+", node.value))
            ):
                found.add((node.lineno, word))
    for line, word in sorted(found):
        if word in vocabulary.words and path not in ELSEWHERE.get(word, set()):
            yield f"{path}:{line}: {word}"


def production() -> Iterator[tuple[str, str]]:
    for room in ("qwenctl", "proxy", "gpu_node"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()


def lua() -> str:
    return "\n".join(path.read_text() for path in sorted(LUA.glob("*.lua")))


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: min(v.owners))
def test_no_other_module_spells_them_out(vocabulary: Vocabulary) -> None:
    sources = dict(production())
    assert vocabulary.owners <= set(sources)
    found = [place for path, text in sources.items() for place in spelled(text, path, vocabulary)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("x = f'pin:{user}'", "pin"),
        ("x = 'maintenance:ops'", "maintenance"),
        ("if lease.kind == 'busy': pass", "busy"),
        ("if entry['kind'] in ('pin', 'x'): pass", "pin"),
        ("x = name.startswith('off-hours:')", "off-hours"),
        ("x = {'agent_silent'}", "agent_silent"),
        ("if failure.code == 'denied': pass", "denied"),
        ("if event.kind == 'down': pass", "down"),
        ("x = [e for e in events if e.kind in ('lease', 'x')]", "lease"),
        ("x = {'kind': 'first-byte'}", "first-byte"),
        ("if phase == 'ready': pass", "ready"),
        ("while 'off' != snapshot.phase.value: pass", "off"),
        ("if status['phase'] in {'failed'}: pass", "failed"),
        ("x = fields.get('to') not in ('stopping', None)", "stopping"),
    ],
)
def test_a_planted_literal_is_found(line: str, word: str) -> None:
    found = [p for v in VOCABULARIES for p in spelled(f"\n{line}\n", "proxy/planted.py", v)]
    assert found == [f"proxy/planted.py:2: {word}"]


def test_words_of_other_meaning_are_not_found() -> None:
    harmless = "x = {'busy': 1}\nif state == 'request': pass\ny = 'pin: what for'\n"
    assert not [p for v in VOCABULARIES for p in spelled(harmless, "proxy/a.py", v)]


def test_every_lease_that_lua_names_is_known() -> None:
    named = set(re.findall(r"'([a-z-]+):'", lua())) - {"window"}
    assert named == {leases.REQUEST, leases.INFLIGHT, leases.BUSY, leases.ADOPTED, leases.FORMER}


@pytest.mark.parametrize(
    ("name", "kind", "rest"),
    [
        (leases.request("key:ci"), leases.REQUEST, "key:ci"),
        (leases.inflight("proxy-1"), leases.INFLIGHT, "proxy-1"),
        (leases.busy("main"), leases.BUSY, "main"),
        (leases.pin("anna"), leases.PIN, "anna"),
        (leases.maintenance("ops"), leases.MAINTENANCE, "ops"),
        (leases.former("i-1"), leases.FORMER, "i-1"),
        ("budget", leases.BUDGET, ""),
    ],
)
def test_a_name_is_its_kind_and_the_rest(name: str, kind: str, rest: str) -> None:
    assert leases.parse(name) == (kind, rest)
    assert leases.kind_of(name) == kind


def test_words_of_other_meaning_are_still_there() -> None:
    """An exception that no module needs any more goes."""
    sources = dict(production())
    for word, paths in ELSEWHERE.items():
        assert all(f'"{word}"' in sources[path] for path in paths), word


def test_pages_show_the_mode_and_compare_no_phase() -> None:
    for path in [*ROOT.glob("proxy/templates/*.html"), ROOT / "proxy/static/waiting.js"]:
        assert not re.search(
            r"""phase["'\])]* *(===?|!==?|in|not in) *["'(\[]""", path.read_text()
        ), path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_have_words_for_every_failure(language: str) -> None:
    texts = json.loads((ROOT / f"proxy/locales/{language}.json").read_text())
    said = {key.partition(".")[2] for key in texts if key.startswith("failure.")}
    assert (
        frozenset(failures.MEANINGS) - {failures.PROVIDER_ERROR} <= said
    )  # it is said as failure.other


def test_every_error_of_a_cloud_is_a_known_failure() -> None:
    assert {error.code for error in [ProviderError, *ProviderError.__subclasses__()]} <= frozenset(
        failures.MEANINGS
    )


def test_a_failure_is_read_as_it_was_written_and_as_older_versions_wrote_it() -> None:
    failure = Failure(failures.AGENT_SILENT, "no call", 2, 1234.5, instance_is_bad=True)
    assert Failure.decode(failure.encode()) == failure
    stored = '{"code": "agent_silent", "message": "no call", "attempts": 2, "retry_at": 1234.5, "condemns": true}'
    assert Failure.decode(stored) == failure
    assert json.loads(failure.encode()) == json.loads(stored)
    for broken in ("", "[]", "null", "{}", '{"code": "x"}'):
        with pytest.raises(ValueError):
            Failure.decode(broken)
