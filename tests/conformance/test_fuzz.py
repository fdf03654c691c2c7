"""Mutated requests as bytes: whatever they are, the node reads of them what a strict reader does.

``FUZZ_EXAMPLES`` says how many are tried; always the same.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.case import HOST, HalfClose, Pause, Reply, raw
from tests.conformance.client import Closed, Garbage, Response
from tests.conformance.planes import Plane, Planes
from tests.conformance.recorder import Received
from tests.conformance.table import TABLE

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))

SEEDS = sorted(
    {
        b"".join(step for step in case.steps if isinstance(step, bytes))
        for cases in TABLE.values()
        for case in cases
    },
    key=lambda content: (len(content), content),
)
SEEDS = [content for content in SEEDS if len(content) < 2000]
"""What the tables send."""

PIECES = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\x00", b"\x0b", b"\x7f", b"\x80", b":", b";",
    b",", b"0", b"1", b"5", b"f", b"-", b"+", b"0x", b"#", b"?", b"/", b"%", b"@", b"HTTP/1.0",
    b"HTTP/1.1", b"chunked", b"identity", b"close", b"keep-alive", b"0\r\n\r\n", b"5\r\nhello\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n",
    b"Host: gpu.example\r\n", raw("GET /evil HTTP/1.1", HOST, "", ""),
]  # fmt: skip
"""What is put in."""


@dataclass(frozen=True)
class Mutation:
    """Bytes from `at` on that are replaced; `at` and `size` are taken modulo what there is."""

    at: int
    size: int
    piece: bytes

    def apply(self, content: bytes) -> bytes:
        at = self.at % (len(content) + 1)
        return content[:at] + self.piece + content[at + self.size :]


MUTATIONS = st.builds(
    Mutation,
    st.integers(0, 2000),
    st.sampled_from([0, 0, 0, 1, 1, 2, 5, 20]),
    st.one_of(st.just(b""), st.sampled_from(PIECES), st.binary(max_size=4)),
)


@st.composite
def segments(draw: st.DrawFn) -> list[bytes]:
    """Mutated requests one after the other, in one or two segments."""
    content = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=2)))
    for mutation in draw(st.lists(MUTATIONS, max_size=3)):
        content = mutation.apply(content)
    if draw(st.booleans()):
        return [content]
    cut = draw(st.integers(0, len(content)))
    return [content[:cut], content[cut:]]


NOISE = st.builds(lambda *parts: [b"".join(parts)], st.sampled_from(SEEDS), st.binary(max_size=200))
"""A request, and bytes of any kind after it."""


@dataclass
class Read:
    """A request as h11 reads it."""

    method: str
    target: str
    body: bytes = b""
    whole: bool = False


def read_strictly(content: bytes) -> tuple[list[Read], bool]:
    """Return h11's reading of a connection's bytes, and whether all of it is valid."""
    requests: list[Read] = []
    while content := content.lstrip(b"\r\n"):  # RFC 9112 §2.2
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        parser.receive_data(content)
        try:
            while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    method, target = event.method.decode(), event.target.decode("latin-1")
                    requests.append(Read(method, target))
                elif isinstance(event, h11.Data):
                    requests[-1].body += bytes(event.data)
                else:
                    return requests, False  # it ends too early
        except h11.RemoteProtocolError:
            return requests, False
        requests[-1].whole = True
        content = bytes(parser.trailing_data[0])
    return requests, True


def at_origin(target: str) -> str:
    """Return a target in origin form, without an empty query."""
    absolute = re.match(r"(?i)https?://[^/?]*", target)
    rest = target[absolute.end() :] if absolute else target
    path = rest if rest.startswith("/") or not absolute else "/" + rest
    return path[:-1] if path.endswith("?") and path.count("?") == 1 else path


def exchange(plane: Plane, pieces: list[bytes], methods: list[str]) -> list[Response]:
    """Send, end the client's side, and read all answers."""
    plane.node.expect([Reply()])
    with plane.client(methods) as client:
        with contextlib.suppress(OSError):
            client.perform([pieces[0], *(step for x in pieces[1:] for step in (Pause(0.002), x))])
            client.perform([HalfClose()])
        with contextlib.suppress(Closed, Garbage):
            while True:
                if client.read().status == 101:
                    break
        plane.barrier()
        return client.responses


def is_of(got: Received, sent: Read) -> bool:
    """Return whether the node got what was sent; a body that was cut may be shorter."""
    same = (got.method, at_origin(got.target)) == (sent.method, at_origin(sent.target))
    whole = (got.body, True) == (sent.body, sent.whole)
    return same and (whole if got.whole else sent.body.startswith(got.body))


def check(plane: Plane, pieces: list[bytes]) -> None:
    """Send bytes, and compare what the node got with a strict reading of them."""
    content = b"".join(pieces)
    expected, valid = read_strictly(content)
    responses = exchange(plane, pieces, [request.method for request in expected])
    received: list[Received] = plane.node.received
    told = f"\n sent {content!r}\n node {[r.raw for r in received]}\n client {responses}"
    faults = [request.fault for request in received if request.fault]
    assert not faults, f"{faults}{told}"
    if any("upgrade" in dict(request.headers) for request in received):
        return  # what follows is no HTTP
    left = iter(expected)
    for got in received:  # we refuse some
        assert any(is_of(got, sent) for sent in left), f"a request that nobody sent{told}"
    bad = {500, 502, 503, 504} if valid else {500}
    assert not bad & {response.status for response in responses}, told


@pytest.mark.xdist_group("conformance-direct")
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(pieces=st.one_of(segments(), segments(), segments(), NOISE))
def test_whatever_is_sent_has_one_reading(planes: Planes, pieces: list[bytes]) -> None:
    check(planes.get("direct"), pieces)


@pytest.mark.xdist_group("conformance-direct")
def test_nothing_broke(planes: Planes) -> None:
    plane = planes.get("direct")
    plane.barrier()
    assert "Traceback" not in plane.proxy.log
