"""`qwenctl.protocol.messages`: messages that nobody else can have made, changed, or sent twice."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from qwenctl.protocol.messages import REPORT_PATH, Answer, Hello, Progress, Report, Service, Spec
from qwenctl.protocol.signing import (
    MAX_SKEW_SECONDS,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    BadSignature,
    Stale,
    check_answer,
    check_message,
    sign_answer,
    sign_message,
)

SECRET, NOW, BODY = "s3cret", 1_700_000_000.0, b'{"state": "ready"}'


def signed(now: float = NOW, nonce: str | None = None) -> dict[str, str]:
    return sign_message(SECRET, "POST", REPORT_PATH, BODY, now=now, nonce=nonce)


def check(
    headers: dict[str, str],
    secret: str = SECRET,
    method: str = "POST",
    path: str = REPORT_PATH,
    body: bytes = BODY,
    now: float = NOW,
) -> str:
    return check_message(secret, method, path, body, headers, now=now)


class TestMessages:
    def test_round_trip(self) -> None:
        headers = signed(nonce="0123456789abcdef")
        assert check(headers) == "0123456789abcdef"
        assert SECRET not in "".join(headers.values())

    @given(
        st.text(min_size=1),
        st.text(),
        st.binary(),
        st.floats(1e9, 3e9),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=64),
    )
    def test_any_round_trip(
        self, secret: str, path: str, body: bytes, now: float, nonce: str
    ) -> None:
        headers = sign_message(secret, "POST", path, body, now=now, nonce=nonce)
        assert check_message(secret, "POST", path, body, headers, now=now) == nonce

    def test_each_message_has_a_nonce_of_its_own(self) -> None:
        nonces = {check(signed()) for _ in range(100)}
        assert len(nonces) == 100

    @pytest.mark.parametrize(
        "changed",
        [
            {"secret": "another"},
            {"method": "GET"},
            {"path": REPORT_PATH + "/"},
            {"body": BODY + b" "},
            {"body": b""},
        ],
    )
    def test_another_part(self, changed: dict[str, str]) -> None:
        with pytest.raises(BadSignature, match="another node secret, or changed on the way"):
            check(signed(), **changed)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("header", "value"),
        [
            (TIME_HEADER, f"{NOW + 1:.3f}"),
            (TIME_HEADER, f"{NOW:.2f}"),
            (TIME_HEADER, "soon"),
            (TIME_HEADER, ""),
            (NONCE_HEADER, "f" * 32),
            (NONCE_HEADER, ""),
            (SIGNATURE_HEADER, ""),
            (SIGNATURE_HEADER, "v1="),
            (SIGNATURE_HEADER, "v1=" + "0" * 64),
            (SIGNATURE_HEADER, "v2=…"),
        ],
    )
    def test_another_header(self, header: str, value: str) -> None:
        for headers in (
            {**signed(), header: value},
            {k: v for k, v in signed().items() if k != header},
        ):
            with pytest.raises(BadSignature):
                check(headers)

    @pytest.mark.parametrize("length", [0, 15, 65, 1000])
    def test_a_nonce_of_odd_length_is_refused_though_signed(self, length: int) -> None:
        headers = signed(nonce="n" * length or None)
        headers[NONCE_HEADER] = "n" * length
        with pytest.raises(BadSignature):
            check(headers)

    @pytest.mark.parametrize("stamp", [float("nan"), float("inf"), float("-inf")])
    def test_a_time_that_is_none(self, stamp: float) -> None:
        with pytest.raises((Stale, BadSignature)):
            check(signed(now=stamp))

    @pytest.mark.parametrize("skew", [MAX_SKEW_SECONDS, -MAX_SKEW_SECONDS, 0.0])
    def test_fresh(self, skew: float) -> None:
        assert check(signed(now=NOW + skew))

    @pytest.mark.parametrize(
        ("skew", "text"),
        [
            (3600.0, "3600 s ahead of the proxy's"),
            (-3600.0, "3600 s behind the proxy's"),
            (121.0, "121 s ahead"),
            (-121.0, "121 s behind"),
        ],
    )
    def test_stale(self, skew: float, text: str) -> None:
        with pytest.raises(Stale, match=text) as caught:
            check(signed(now=NOW + skew))
        assert caught.value.skew == skew
        assert "set it with NTP" in str(caught.value)

    def test_a_forgery_learns_nothing_of_the_time(self) -> None:
        """The signature is checked first, so that only who knows the secret is told of skew."""
        with pytest.raises(BadSignature):
            check(signed(now=NOW + 3600), secret="another")

    @pytest.mark.parametrize(
        ("method", "path", "nonce", "body"),
        [
            ("POS", "T/a", "n" * 16, b"nb"),
            ("POST/", "a", "n" * 16, b"nb"),
            ("POST", "/a", "n" * 17, b"b"),
            ("POST", "/a", "n" * 16 + "nb", b""),
        ],
    )
    def test_no_two_lists_of_parts_are_the_same_bytes(
        self, method: str, path: str, nonce: str, body: bytes
    ) -> None:
        """Each list has the same characters in a row."""
        one = sign_message(SECRET, "POST", "/a", b"nb", now=NOW, nonce="n" * 16)
        two = sign_message(SECRET, method, path, body, now=NOW, nonce=nonce)
        assert one[SIGNATURE_HEADER] != two[SIGNATURE_HEADER]


class TestAnswers:
    NONCE = "0123456789abcdef"

    def test_round_trip(self) -> None:
        check_answer(SECRET, self.NONCE, 200, b"{}", sign_answer(SECRET, self.NONCE, 200, b"{}"))

    @pytest.mark.parametrize(
        ("secret", "nonce", "status", "body"),
        [
            ("another", NONCE, 200, b"{}"),
            (SECRET, "f" * 16, 200, b"{}"),  # the answer to another message
            (SECRET, NONCE, 409, b"{}"),
            (SECRET, NONCE, 200, b'{"commands": []}'),
        ],
    )
    def test_another_part(self, secret: str, nonce: str, status: int, body: bytes) -> None:
        headers = sign_answer(SECRET, self.NONCE, 200, b"{}")
        with pytest.raises(BadSignature, match="not signed with this deployment's node secret"):
            check_answer(secret, nonce, status, body, headers)

    def test_unsigned(self) -> None:
        with pytest.raises(BadSignature):
            check_answer(SECRET, self.NONCE, 200, b"{}", {})

    def test_a_message_is_no_answer(self) -> None:
        """A node's own signature cannot be sent back to it as an answer."""
        headers = sign_message(SECRET, "200", "{}", b"", now=NOW, nonce=self.NONCE)
        with pytest.raises(BadSignature):
            check_answer(SECRET, self.NONCE, 200, b"{}", headers)


class TestModels:
    def test_round_trip(self) -> None:
        spec = Spec(version="1", services=(Service(command=("python", "app.py")),))
        answer = Answer(server_time=NOW, start_seq=3, spec=spec)
        assert Answer.model_validate_json(answer.model_dump_json()) == answer

    def test_unknown_keys_of_a_newer_side_are_ignored(self) -> None:
        hello = Hello.model_validate({"gpu": "main", "boot_id": "x" * 8, "new": {"a": 1}})
        assert hello.gpu == "main"

    @pytest.mark.parametrize(
        "fields",
        [
            {"boot_id": "short"},
            {"boot_id": "x" * 65},
            {"state": "fine"},
            {"active": -1},
            {"error": "x" * 2001},
            {"log": ["x"] * 201},
            {"log": ["x" * 4001]},
            {"progress": {"percent": 101}},
            {"progress": {"text": "x" * 401}},
        ],
    )
    def test_limits(self, fields: dict[str, object]) -> None:
        good = {"gpu": "main", "boot_id": "x" * 8, "start_seq": 1, "state": "ready"}
        assert Report.model_validate(good).progress == Progress()
        with pytest.raises(ValidationError):
            Report.model_validate({**good, **fields})


# Numbers

FULL_REPORT: dict[str, Any] = {
    "gpu": "main",
    "boot_id": "boot-0001",
    "start_seq": 3,
    "state": "ready",
    "active": 1,
    "progress": {"percent": 50.0, "eta": 3.0},
    "services": [{"name": "webui", "state": "ready", "port": 7860, "restarts": 1}],
    "resources": {
        "cpu_percent": 3.0,
        "memory_used": 1,
        "memory_total": 2,
        "disk_free": 3,
        "disk_used_percent": 4.0,
        "gpus": [
            {
                "utilisation_percent": 1.0,
                "memory_used": 1,
                "memory_total": 2,
                "temperature": 40.0,
                "power": 50.0,
                "power_limit": 60.0,
            }
        ],
        "gpus_age": 1.0,
    },
    "interruption": {"seconds_left": 100.0},
    "uptime": 10.0,
}
FULL_HELLO = {"gpu": "main", "boot_id": "boot-0001", "uptime": 3.0, "protocol": 3}


def numbers(model: type[BaseModel]) -> Iterator[str]:
    """The names of all fields with a number, those of nested messages too."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        kinds += [inner for kind in kinds for inner in get_args(kind)]
        if {int, float} & {kind for kind in kinds if isinstance(kind, type)}:
            yield name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, (dict, list)):
            yield from leaves(inner, (*path, key))
        elif isinstance(inner, (int, float)):
            yield (*path, key)


CASES = [(Report, FULL_REPORT, path) for path in leaves(FULL_REPORT)]
CASES += [(Hello, FULL_HELLO, path) for path in leaves(FULL_HELLO)]


def test_each_number_of_a_message_is_tried() -> None:
    assert {path[-1] for _, _, path in CASES} == {*numbers(Report), *numbers(Hello)}


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "1e308", "1" + "0" * 400, "1e19"])
@pytest.mark.parametrize(
    ("model", "full", "path"), CASES, ids=[".".join(map(str, path)) for _, _, path in CASES]
)
def test_a_number_that_nothing_can_have_is_refused(
    model: type[Report | Hello], full: dict[str, Any], path: tuple[Any, ...], bad: str
) -> None:
    changed = copy.deepcopy(full)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "HERE"
    model.model_validate(full)
    with pytest.raises(ValidationError):
        model.model_validate_json(json.dumps(changed).replace('"HERE"', bad))
