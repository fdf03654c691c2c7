"""Which GPU of a host a request is for: the choice, and the model's name in a body."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.data import model_finder as tiers
from proxy.data.model_finder import ModelFinder, Models, TooMuchAhead
from proxy.data.request_buffer import MESSAGE
from proxy.data.routing import gpu_of, tier_status
from proxy.http.request import Message, Receive
from qwenctl.config.deployment import Config, UnknownTier
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import page_mode
from tests.unit.proxy.made import request

GPUS = {
    "small": {"tier": "speed", "models": ["qwen3-vl-4b", "both-*"]},
    "large": {"tier": "quality", "models": ["Qwen/Qwen3-VL-8B-*", "both-exact", "odd[1]"]},
    "other": {"hosts": ["other.test"], "models": ["qwen3-vl-4b"]},
}
CONFIG = Config.model_validate({"gpu": GPUS})


@pytest.mark.parametrize(
    ("headers", "model", "name"),
    [
        ({}, "", "small"),
        ({"x-qwenctl-tier": "quality"}, "", "large"),
        ({"x-qwenctl-tier": " Quality "}, "", "large"),
        ({"x-qwenctl-tier": ""}, "Qwen/Qwen3-VL-8B-FP8", "large"),
        ({"x-qwenctl-tier": "speed", "cookie": "qwenctl_tier=quality"}, "both-exact", "small"),
        ({}, "qwen3-vl-4b", "small"),
        ({}, "Qwen/Qwen3-VL-8B-Instruct", "large"),
        ({}, "qwen/qwen3-vl-8b-instruct", "small"),  # upper and lower case differ
        ({}, "both-1", "small"),
        ({}, "both-exact", "large"),  # a name that stands there comes before a pattern
        ({}, "odd[1]", "large"),
        ({"cookie": "qwenctl_tier=quality"}, "qwen3-vl-4b", "small"),
        ({"cookie": "a=b; qwenctl_tier=quality"}, "", "large"),
        ({"cookie": "qwenctl_tier=quality"}, "unknown", "large"),
        ({"cookie": "qwenctl_tier=gone"}, "", "small"),
        ({"cookie": "xqwenctl_tier=quality"}, "", "small"),
        ({"host": "other.test", "x-qwenctl-tier": "quality"}, "", "other"),
        ({"host": "OTHER.test", "x-qwenctl-tier": "nonsense"}, "", "other"),
    ],
)
def test_who_is_chosen(headers: dict[str, str], model: str, name: str) -> None:
    assert gpu_of(CONFIG, request(headers={"host": "any.test", **headers}), model) == name


def test_an_unknown_tier_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownTier, match="no tier 'fast' here; known: speed, quality"):
        gpu_of(CONFIG, request(headers={"x-qwenctl-tier": "fast"}))


def test_no_gpu_is_no_choice() -> None:
    assert gpu_of(Config(), request(headers={"x-qwenctl-tier": "fast"})) == ""


X, Y = {"tier": "x"}, {"tier": "y"}


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ({"a": {**X, "hosts": ["h"]}, "b": {**X, "hosts": ["h"]}}, "both claim host h"),
        ({"a": {**X, "hosts": ["h"]}, "b": {"hosts": ["H"]}}, "both claim host h"),
        ({"a": {"hosts": ["h"]}, "b": {**X, "hosts": ["h"]}}, "both claim host h"),
        ({"a": X, "b": {}}, "both serve every other host; give each a tier"),
        ({"a": X, "b": Y, "c": X}, "gpu.a and gpu.c both serve every other host"),
    ],
)
def test_gpus_that_nothing_tells_apart_are_a_mistake(gpus: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({"gpu": gpus})


@pytest.mark.parametrize(
    ("gpus", "hosts"),
    [
        ({"a": X, "b": Y}, {"any": "ab", "": "ab"}),
        ({"a": {}, "b": {}}, {"any": "a"}),  # b is for the command line
        ({"a": {"hosts": ["h"]}, "b": X, "c": Y}, {"h": "a", "any": "bc"}),
        ({"a": {**X, "hosts": ["H", "i"]}, "b": {**Y, "hosts": ["h"]}}, {"h": "ab", "i": "a"}),
        ({"b": {**X, "hosts": ["h"]}, "a": {**Y, "hosts": ["h"]}}, {"any": "ba"}),
        ({"a": {**X, "hosts": ["h", "H"]}}, {"h": "a", "any": "a"}),
    ],
)
def test_the_gpus_of_a_host(gpus: Any, hosts: dict[str, str]) -> None:
    config = Config.model_validate({"gpu": gpus})
    assert {host: "".join(config.gpus_at(host)) for host in hosts} == hosts


BLOCKED = (Lease("budget:", 2000.0),)
WANTED = (Lease("request:ada", 2000.0),)


@pytest.mark.parametrize(
    ("phase", "changes", "state", "seconds"),
    [
        ("ready", {}, "ready", None),
        ("ready", {"blocks": BLOCKED}, "ready", None),
        ("draining", {}, "ready", None),
        ("draining", {"blocks": BLOCKED}, "blocked", None),
        ("draining", {"node": {"interrupted_at": "1"}}, "asleep", 5.0),
        ("off", {}, "asleep", 5.0),
        ("stopping", {}, "asleep", 5.0),
        ("loading", {}, "asleep", 5.0),
        ("off", {"blocks": BLOCKED}, "blocked", None),
        ("loading", {"leases": WANTED}, "waking", 3.0),
        ("stopping", {"leases": WANTED}, "waking", 3.0),
        ("off", {"leases": WANTED}, "waking", 3.0),
        ("failed", {}, "failed", None),
        ("failed", {"leases": WANTED}, "failed", None),
    ],
)
def test_the_state_of_a_tier(
    phase: str, changes: dict[str, Any], state: str, seconds: float | None
) -> None:
    snapshot = Snapshot("a", 1000.0, {"phase": phase}, **changes)
    status = {
        "gpu": "a",
        "steps": [{"expected": None}, {"expected": 2.0}, {"expected": 3.0}],
        "wanted": snapshot.wanted,
        "eta_seconds": 3.0 if snapshot.wanted else None,
        "mode": page_mode(snapshot, wanted=snapshot.wanted),
    }
    assert tier_status("speed", status) == {
        "tier": "speed",
        "gpu": "a",
        "state": state,
        "seconds": seconds,
    }


# The model in a body


def model_in(*pieces: bytes) -> str:
    finder = ModelFinder()
    for piece in pieces:
        finder.feed(piece)
    return finder.model


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a"}', "a"),
        (b' \n{ "x" : 1 , "model"\t:\r\n"a" }', "a"),
        (b'{"messages":[{"model":"no"}],"meta":{"model":"no"},"model":"yes"}', "yes"),
        (b'{"model":{"model":"no"}}', ""),
        (b'{"model":["no"],"x":"no"}', ""),
        (b'{"model":null,"model":"b"}', "b"),
        (b'{"model":"a","model":"b"}', "a"),
        (b'{"x":"\\"model\\":\\"no\\"","model":"yes"}', "yes"),
        (b'{"x":"\\\\","model":"yes"}', "yes"),
        (b'{"x":"model","y":"no"}', ""),
        (b'{"x":"}","y":"]{","model":"yes"}', "yes"),
        (b'{"mod\\u0065l":"\\u6a21/\xe5\x9e\x8b\\n"}', "模/型\n"),
        (b'{"model":"a', ""),  # it may go on
        (b'{"model":{"x":"y"},"model":"b"}', "b"),
        (b'{"x":1}{"model":"no"}', ""),
        (b'{}{"model":"no"}', ""),
        (b'["model","no"]', ""),
        (b'"model"', ""),
        (b'{"model":"' + b"x" * 513 + b'"}', ""),
        (b'{"model":"\xff"}', ""),
        (b'{"model":"\x00"}', ""),
        (b"[" * 100_000, ""),
        (b"{" * 100_000, ""),
        (b"", ""),
    ],
)
def test_the_model_of_a_body(body: bytes, model: str) -> None:
    assert model_in(body) == model
    assert model_in(*(body[i : i + 1] for i in range(len(body)))) == model


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["model", '"model":"no"', "\\", '\\"', "{", "}", "[", "]", ",", ":", "模型", "\ud83d"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(
    body=st.dictionaries(TEXTS, VALUES, max_size=5),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
@example({"x": "\\", "model": "yes"}, None, True, [7])
def test_it_finds_what_the_whole_body_says(
    body: dict[str, Any], indent: int | None, ascii_only: bool, cuts: list[int]
) -> None:
    """However the body is written, and into whichever pieces it is cut."""
    text = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    places = sorted(cut for cut in cuts if cut < len(text))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]
    whole = body.get("model")
    expected = whole if isinstance(whole, str) and writable(whole, ascii_only) else ""
    assert model_in(*pieces) == expected
    for end in range(len(pieces)):  # a beginning says the same, or nothing yet
        assert model_in(*pieces[:end]) in ("", expected)


def writable(text: str, ascii_only: bool) -> bool:
    """Whether it can stand in JSON: half a surrogate pair can as an escape only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ascii_only
    return True


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'{"', b'model"', b':"', b"\\"])))
def test_it_takes_anything(pieces: list[bytes]) -> None:
    assert isinstance(model_in(*pieces), str)
    assert model_in(*pieces) == model_in(b"".join(pieces))


@pytest.mark.parametrize("body", [b' ["', b'"', b"{}", b'{"model":"a"'])
def test_it_says_when_the_rest_does_not_matter(body: bytes) -> None:
    finder = ModelFinder()
    finder.feed(body)
    assert finder.done
    finder.feed(b'{"model":"no"}')
    assert finder.model in ("", "a")


def test_it_keeps_nothing_of_a_long_text() -> None:
    finder = ModelFinder()
    finder.feed(b'{"prompt":"')
    for _ in range(100):
        finder.feed(b"\\n" + b"x" * 10_000)
    assert len(finder._text or b"") < 2000
    finder.feed(b'","model":"a"}')
    assert (finder.model, finder.done) == ("a", True)


# Reading ahead


def arriving(*pieces: bytes) -> Receive:
    """The server's ``receive`` for a body in these pieces."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    queue = iter(messages)

    async def receive() -> Message:
        return next(queue)

    return receive


def test_it_reads_no_further_than_the_model() -> None:
    async def go() -> None:
        post = request("POST", "/v1/x", {"Content-Length": "1000000"})
        model, held = await Models(CONFIG).read(post, arriving(b'{"model":"a"', b"x" * 999_988))
        assert (model, held.ahead) == ("a", 12 + MESSAGE)
        assert (await held())["body"] == b'{"model":"a"'
        assert held.ahead == 0
        assert len((await held())["body"]) == 999_988

    asyncio.run(go())


def test_a_body_in_tiny_pieces_does_not_take_much_more_than_its_bytes() -> None:
    async def go() -> None:
        tiny = arriving(*[b" "] * (tiers.MAX_AHEAD // MESSAGE), b'{"model":"a"}')
        assert (await Models(CONFIG).read(request("POST", "/v1/x"), tiny))[0] == ""

    asyncio.run(go())


def test_what_all_have_read_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        models, post = Models(CONFIG), request("POST", "/v1/x")
        large = (b'{"x":"', *[b"x" * 50_000] * 4, b'","model":"a"}')
        model, first = await models.read(post, arriving(*large))
        assert model == "a"
        with pytest.raises(TooMuchAhead):
            await models.read(post, arriving(*large))
        small = (b'{"x":"' + b"x" * 60_000, b'","model":"b"}')
        model, second = await models.read(post, arriving(*small))
        assert model == "b"  # as much as everybody may
        second.close()
        while first.ahead:
            await first()  # on its way to the node
        assert (await models.read(post, arriving(*large)))[0] == "a"

    monkeypatch.setattr(tiers, "MAX_AHEAD_IN_ALL", 210_000)
    asyncio.run(go())


def test_what_all_have_read_of_short_bodies_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def go() -> None:
        models, post = Models(CONFIG), request("POST", "/v1/x")
        short = (b'{"x":"' + b"x" * 60_000, b'","model":"b"}')
        read = [(await models.read(post, arriving(*short)))[1] for _ in range(6)]
        for _ in range(3):  # what was refused holds nothing
            with pytest.raises(TooMuchAhead):
                await models.read(post, arriving(*short))
        read[0].close()  # its request has ended, and nobody will read its body
        assert (await models.read(post, arriving(*short)))[0] == "b"

    monkeypatch.setattr(tiers, "MAX_AHEAD_IN_ALL", 190_000)
    asyncio.run(go())


@pytest.mark.parametrize(
    ("method", "path", "headers", "matters"),
    [
        ("POST", "/v1/chat/completions", {}, True),
        (
            "POST",
            "/openai/v1/embeddings",
            {"Content-Type": "Application/JSON; charset=utf-8"},
            True,
        ),
        ("POST", "/v1/x", {"X-Qwenctl-Tier": "speed"}, False),
        ("POST", "/v1/x", {"Content-Type": "multipart/form-data"}, False),
        ("POST", "/v1/x", {"Content-Encoding": "gzip"}, False),
        ("GET", "/v1/x", {}, False),
        ("POST", "/queue/join", {}, False),
    ],
)
def test_which_bodies_matter(
    method: str, path: str, headers: dict[str, str], matters: bool
) -> None:
    asked = request(method, path, {"Content-Type": "application/json", **headers})
    assert Models(CONFIG).matters(["small", "large"], asked) is matters
    assert not Models(Config.model_validate({"gpu": {"a": X, "b": Y}})).matters(["a", "b"], asked)


@pytest.mark.parametrize(
    ("path", "matters"),
    [
        ("/rerank", True),
        ("/v2/embed", True),
        ("/api/chat", True),
        ("/chat/completions", True),
        ("/api/show", False),
        ("/collective_rpc", False),
        ("/", False),
    ],
)
def test_routes_of_model_servers_without_v1_name_a_model_too(path: str, matters: bool) -> None:
    servers = {name: {**table, "preset": "openai"} for name, table in GPUS.items()}
    config = Config.model_validate({"gpu": servers})
    asked = request("POST", path, {"Content-Type": "application/json"})
    assert Models(config).matters(list(servers), asked) is matters
    assert not Models(CONFIG).matters(["small", "large"], asked)


@pytest.mark.parametrize("text", [b"[", b'"":"",', b'["a"],'])
def test_what_is_made_to_be_slow_is_given_up(text: bytes) -> None:
    finder = ModelFinder()
    finder.feed(b"{")
    for _ in range(400):
        finder.feed(text * 1000)
    assert finder.done
    assert finder.tired
    assert finder.model == ""


def test_a_long_chat_is_looked_through_to_its_end() -> None:
    messages = [{"role": "user", "content": f"word {number}"} for number in range(10_000)]
    finder = ModelFinder()
    finder.feed(json.dumps({"messages": messages, "model": "large"}).encode())
    assert (finder.model, finder.tired) == ("large", False)
