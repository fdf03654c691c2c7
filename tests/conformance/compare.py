"""Run a case on a plane, and say how it differs from what is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.conformance.case import Answer, Case, Got, Headers, Outcome
from tests.conformance.client import Closed, Garbage, Response
from tests.conformance.planes import Plane
from tests.conformance.recorder import Received


@dataclass
class Happened:
    """What both sides have got."""

    node: list[Received]
    client: list[Response]
    rest: bytes
    closed: bool
    fault: str = ""

    def __str__(self) -> str:
        node = [(one.raw, one.body, one.trailers, one.whole, one.fault) for one in self.node]
        return f"\n node: {node}\n client: {self.client}\n then: {self.rest!r}, closed: {self.closed} {self.fault}"


def run(case: Case, plane: Plane) -> Happened:
    """Send a case's bytes."""
    allowed = case.allowed(plane.name)
    plane.node.expect(case.replies)
    methods = [got.method for outcome in allowed for got in outcome.node]
    fault, rest = "", b""
    with plane.client(methods) as client:
        try:
            client.perform(case.steps)
            finals = max(sum(map(_is_final, outcome.client)) for outcome in allowed)
            while sum(map(_is_final, client.responses)) < finals:
                client.read()
            rest = client.exactly(max(len(outcome.after_upgrade or b"") for outcome in allowed))
            if allowed[0].any_reading:
                client.settle()
            elif all(outcome.closes for outcome in allowed):
                rest += client.rest()
        except Closed as closed:
            fault = str(closed)
        except (Garbage, TimeoutError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        plane.barrier()
        more, is_closed = client.pending()
        return Happened(plane.node.received, client.responses, rest + more, is_closed, fault)


def _without_repeated_100(responses: Sequence[Response]) -> list[Response]:
    """Leave out what a front and we say both; a client skips all of them (RFC 9110 §15.2)."""
    again = zip(responses[1:], responses)
    return [
        *responses[:1],
        *(one for one, before in again if not one.status == before.status == 100),
    ]


def _is_final(answer: Answer | Response) -> bool:
    status = answer.status if isinstance(answer.status, int) else max(answer.status)
    return status >= 200 or status == 101


def differences(outcome: Outcome, happened: Happened) -> list[str]:
    """Return what is not as it must be."""
    if outcome.any_reading:
        whole = [r.target for r in happened.node if r.whole and not outcome.finished]
        return [received.fault for received in happened.node if received.fault] + whole
    found = [happened.fault] if happened.fault else []
    if len(happened.node) != len(outcome.node):
        found.append(f"the node got {len(happened.node)} requests, not {len(outcome.node)}")
    client = _without_repeated_100(happened.client)
    if len(client) != len(outcome.client):
        found.append(f"the client got {len(client)} answers, not {len(outcome.client)}")
    for got, received in zip(outcome.node, happened.node):
        found += _of_request(got, received)
    for answer, response in zip(outcome.client, client):
        found += _of_answer(answer, response)
    if outcome.closes is not None and happened.closed is not outcome.closes:
        found.append(f"closed is {happened.closed}")
    if happened.rest != (outcome.after_upgrade or b""):
        found.append(f"then came {happened.rest!r}")
    return found


def _of_request(got: Got, received: Received) -> list[str]:
    found = [received.fault] if received.fault else []
    if (received.method, received.target) != (got.method, got.target):
        found.append(f"the node was asked {received.method} {received.target}")
    if received.whole is not got.whole:
        found.append(f"the node's request is whole: {received.whole}")
    if received.body != got.body:
        found.append(f"the node got the body {received.body[:200]!r}")
    if got.framing and received.framing != got.framing:
        found.append(f"the node's request has framing {received.framing}")
    return (
        found
        + _of_headers("the node", got.headers, received.headers)
        + _of_headers("the node's trailers", got.trailers, received.trailers)
    )


def _of_answer(answer: Answer, response: Response) -> list[str]:
    allowed = [answer.status] if isinstance(answer.status, int) else list(answer.status)
    found = [] if response.status in allowed else [f"the client got {response.status}"]
    if answer.body is not None and response.body != answer.body:
        found.append(f"the client got the body {response.body[:200]!r}")
    if answer.framing and response.framing != answer.framing:
        found.append(f"the answer has framing {response.framing}")
    if answer.whole is not response.whole:
        found.append(f"the answer is whole: {response.whole}")
    return found + _of_headers("the client", answer.headers, response.headers)


def _of_headers(who: str, expected: Headers, actual: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    for name, value in expected.items():
        values = [text for key, text in actual if key == name]
        if isinstance(value, tuple):
            right = tuple(values) == value
        elif isinstance(value, re.Pattern):
            right = bool(value.fullmatch(", ".join(values)))
        else:
            right = (", ".join(values) if values else None) == value
        if not right:
            found.append(f"{who}: {name} is {values}, not {value!r}")
    return found
