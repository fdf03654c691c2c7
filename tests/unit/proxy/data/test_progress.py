"""`proxy.data.progress`: who is told how a GPU comes up, and what becomes of the answer then."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.data import progress
from proxy.data.progress import (
    INTERVAL,
    MAX_ANSWER,
    EventStream,
    error_of,
    prefers_progress,
    progress_of,
    wants_events,
)
from proxy.http.request import Message
from tests.unit.proxy.made import request

STREAM = b'{"model": "m", "stream": true}'
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("prefer", "asks"),
    [
        ("progress", True),
        ("Progress", True),
        ("wait=10, progress", True),
        ("progress;every=2, respond-async", True),
        ("progress=json", True),
        ('x="a, b", progress', True),
        ("", False),
        ("no-progress", False),
        ("respond-async", False),
        ('x="a, progress"', False),
        ("x;progress", False),
    ],
)
def test_who_asks_for_progress(prefer: str, asks: bool) -> None:
    assert prefers_progress(request("POST", CHAT, {"Prefer": prefer})) is asks


@pytest.mark.parametrize(
    ("path", "accept", "body", "wants"),
    [
        (CHAT, "text/event-stream", None, True),
        (CHAT, "application/json, Text/Event-Stream;q=0.9", None, True),
        (CHAT, "text/event-stream;q=0", None, False),
        (CHAT, "text/event-stream; q=0.0, */*", None, False),
        (CHAT, "application/json", None, False),
        (CHAT, "application/json", STREAM, True),
        ("/completion", "", STREAM, True),
        ("/api/chat/completions", "", STREAM, True),
        (CHAT, "", b'{"stream": false}', False),
        (CHAT, "", b'{"stream": 1}', False),
        (CHAT, "", b'{"messages": [{"stream": true}]}', False),
        (CHAT, "", b'[{"stream": true}]', False),
        (CHAT, "", b"stream", False),
        (CHAT, "", b"[" * 60_000, False),
        (CHAT, "", b"", False),
        # Ollama's own API streams lines of JSON.
        ("/api/chat", "", STREAM, False),
        ("/ollama/api/generate/0", "", STREAM, False),
        ("/api/pull", "", STREAM, False),
        ("/api/chat", "text/event-stream", STREAM, True),
    ],
)
def test_who_expects_events(path: str, accept: str, body: bytes | None, wants: bool) -> None:
    headers = {"Accept": accept} if accept else {}
    assert wants_events(request("POST", path, headers), body) is wants


def sent_by(
    status: int, kind: str, *pieces: bytes, path: str = CHAT, **headers: str
) -> tuple[str, bool]:
    """What the client gets of an answer once the event stream has begun, and whether it ended."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def go() -> None:
        stream = EventStream(send, request("POST", path))
        await stream.begin()
        fields = {"content-type": kind, **headers}
        raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in fields.items()]
        await stream({"type": "http.response.start", "status": status, "headers": raw})
        for piece in pieces[:-1]:
            await stream({"type": "http.response.body", "body": piece, "more_body": True})
        await stream({"type": "http.response.body", "body": pieces[-1]})

    asyncio.run(go())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sent[0]["status"] == 200
    body = b"".join(message["body"] for message in sent[1:])
    return body.decode(), not sent[-1].get("more_body", False)


def test_a_comment_is_sent_at_a_change_or_after_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message["body"])

    async def go() -> None:
        nonlocal now
        stream = EventStream(send, request("POST", CHAT))
        assert await stream.comment("booting") == INTERVAL
        now += 0.5
        assert await stream.comment("booting") == INTERVAL - 0.5
        assert await stream.comment("loading") == INTERVAL
        assert await stream.comment("loading") == INTERVAL
        now += INTERVAL
        assert await stream.comment("loading") == INTERVAL

    asyncio.run(go())
    assert sent == [b": booting\n\n", b": loading\n\n", b": loading\n\n"]


def error_in(*args: Any, **options: Any) -> dict[str, Any]:
    text, ended = sent_by(*args, **options)
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    assert ended
    error: dict[str, Any] = json.loads(text[6:])["error"]
    return error


def test_a_stream_of_the_node_passes_unchanged() -> None:
    text = "text/event-stream; charset=utf-8"
    assert sent_by(200, text, b"data: 1\n", b"\ndata: 2\n\n", b"") == (
        "data: 1\n\ndata: 2\n\n",
        True,
    )


def test_any_other_good_answer_is_one_event() -> None:
    assert sent_by(200, "application/json", b'{"a":\n', b"1}") == (
        'data: {"a":\ndata: 1}\n\n',
        True,
    )
    assert sent_by(204, "", b"") == ("", True)
    text = '{"a": "\u2028\x85"}'  # ends of lines elsewhere, not in an event stream
    assert sent_by(200, "application/json", f"{text}\n".encode()) == (f"data: {text}\n\n", True)


def test_an_error_of_the_node_keeps_its_members() -> None:
    body = b'{"error": {"message": "no", "type": "NotFound", "param": null, "code": 404}}'
    error = error_in(404, "application/json", body[:20], body[20:])
    assert error == {
        "message": "no",
        "type": "NotFound",
        "param": None,
        "code": 404,
        "status": 404,
    }


def test_a_problem_of_ours_is_an_error_of_the_api() -> None:
    body = b'{"type": "urn:x", "title": "Not ready", "code": "no_capacity", "detail": "none free"}'
    error = error_in(503, "application/problem+json", body, retry_after="7")
    assert (error["message"], error["code"]) == ("none free", "no_capacity")
    assert (error["status"], error["retry_after"]) == (503, 7)


def test_an_error_for_clients_of_anthropic_has_the_events_name() -> None:
    text, _ = sent_by(503, "application/json", b'{"detail": "asleep"}', path="/v1/messages")
    name, data, *_ = text.split("\n")
    assert name == "event: error"
    content = json.loads(data.removeprefix("data: "))
    assert (content["type"], content["error"]["message"]) == ("error", "asleep")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the node answered with status 500"),
        (b"Internal Server Error", "Internal Server Error"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"detail": [{"msg": "field required"}]}', '[{"msg": "field required"}]'),
        (b"[1]", "[1]"),
        (b"[" * 60_000, "[" * 2000),
        (b"\xff", "\ufffd"),
    ],
)
def test_errors_of_any_kind(body: bytes, message: str) -> None:
    assert error_of(body.decode("utf-8", "replace"), 500)["message"] == message
    assert error_in(500, "text/plain", body)["message"] == message


def test_answers_that_cannot_be_an_event() -> None:
    long = error_in(200, "application/json", b"x" * MAX_ANSWER, b"xx")
    assert "too long" in long["message"]
    packed = error_in(200, "text/event-stream", b"\x1f\x8b", content_encoding="gzip")
    assert "gzip" in packed["message"]


def test_what_is_told() -> None:
    status = {"phase": "loading", "elapsed_seconds": 30.0, "eta_seconds": 90.0, "failure": None}
    node = {"phase": "weights", "percent": 12.0, "text": "3 of 9", "eta": 4.0}
    assert progress_of({**status, "progress": node}) == {
        "phase": "loading",
        "percent": 25,
        "eta_seconds": 90.0,
        "node": {"phase": "weights", "percent": 12.0, "text": "3 of 9"},
    }
    late = progress_of({**status, "eta_seconds": 0.0, "progress": None})
    assert late["percent"] == 99
    unknown = progress_of({**status, "eta_seconds": None, "progress": None})
    assert unknown["percent"] is None
