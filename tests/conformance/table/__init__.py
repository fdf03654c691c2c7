"""The tables, one a topic. Sections are those of the RFC that a row names."""

from dataclasses import replace

from tests.conformance.case import ANY_READING, Case
from tests.conformance.table.answers import ANSWERS
from tests.conformance.table.bodies import BODIES
from tests.conformance.table.connections import CONNECTIONS
from tests.conformance.table.forwarded import FORWARDED
from tests.conformance.table.fronts import FAILS, READS_ITSELF
from tests.conformance.table.hop_by_hop import HOP_BY_HOP
from tests.conformance.table.http10 import HTTP10
from tests.conformance.table.interim import INTERIM
from tests.conformance.table.ranges import RANGES
from tests.conformance.table.smuggling import SMUGGLING
from tests.conformance.table.targets import TARGETS
from tests.conformance.table.trailers import TRAILERS
from tests.conformance.table.upgrade import UPGRADE

_TOPICS: dict[str, list[Case]] = {
    "bodies": BODIES,
    "smuggling": SMUGGLING,
    "targets": TARGETS,
    "hop-by-hop": HOP_BY_HOP,
    "forwarded": FORWARDED,
    "interim": INTERIM,
    "upgrade": UPGRADE,
    "ranges": RANGES,
    "trailers": TRAILERS,
    "answers": ANSWERS,
    "connections": CONNECTIONS,
    "http10": HTTP10,
}


def _with_fronts(row: str, case: Case) -> Case:
    """Add what `fronts` says of a row."""
    planes, why = FAILS.get(row, ((), ""))
    itself = {front: ANY_READING for front, rows in READS_ITSELF.items() if row in rows}
    return replace(case, but={**case.but, **itself}, fails=dict.fromkeys(planes, why))


TABLE = {
    topic: [_with_fronts(f"{topic}: {case.name}", case) for case in cases]
    for topic, cases in _TOPICS.items()
}
