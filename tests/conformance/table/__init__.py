"""The tables, one a topic. Sections are those of RFC 9110, 9112, 6455 and 7239."""

from tests.conformance.case import Case
from tests.conformance.table.bodies import BODIES
from tests.conformance.table.smuggling import SMUGGLING

TABLE: dict[str, list[Case]] = {
    "bodies": BODIES,
    "smuggling": SMUGGLING,
}
