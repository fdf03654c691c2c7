"""Which requests ask for models, and what is taken from a node's answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.data import model_list
from proxy.data.model_list import MAX_BYTES, MAX_MODELS, MAX_TEXT, ModelLists, asked_model
from proxy.http.request import Message
from qwenctl.config.deployment import Config
from tests.integration.proxy.parts import into
from tests.unit.proxy.made import gpu, request

CONFIG = Config.model_validate({"gpu": {"main": {}}})


class NoStore:
    def remember_models(self, gpu: str, text: str) -> None: ...


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        ("GET", "/v1/models", ""),
        ("HEAD", "/v1/models/", ""),
        ("GET", "/v1/models?limit=2", ""),
        ("GET", "/v1/models/tiny", "tiny"),
        ("GET", "/v1/models/Qwen/Qwen3-VL-8B", "Qwen/Qwen3-VL-8B"),
        ("GET", "/v1/modelsx", None),
        ("GET", "/api/v1/models", None),
        ("POST", "/v1/models", None),
        ("DELETE", "/v1/models/tiny", None),
    ],
)
def test_what_asks_for_models(method: str, path: str, model: str | None) -> None:
    assert asked_model(request(method, path)) == model


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"models": ["a", "b-*", "a", "c"]}, ("a", "c")),
        ({"workload": "vllm-openai", "model": "Qwen/Q"}, ("Qwen/Q",)),
        ({"workload": "vllm-openai", "model": "Qwen/Q", "models": ["x"]}, ("x", "Qwen/Q")),
        ({"workload": "qwen3-vl-webui", "model": "Qwen/Q"}, ()),
        (
            {
                "workload": "vllm-openai",
                "model": "Qwen/Q",
                "service": [{"name": "vllm", "command": ["Qwen/Q", "--served-model-name=q"]}],
            },
            (),
        ),
    ],
)
def test_names_that_the_settings_tell(settings: dict[str, Any], names: tuple[str, ...]) -> None:
    assert gpu(**settings).model_names == names


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b"[1]",
        b'{"data": 7}',
        b'{"data": {}}',
        b'{"data": [7, null, {"id": 7}, {"id": null}, {}]}',
        b'{"data": [{"id": "%s"}]}' % (b"x" * (MAX_TEXT + 1)),
    ],
)
def test_odd_answers_teach_nothing(body: bytes) -> None:
    lists = ModelLists(CONFIG, NoStore())  # type: ignore[arg-type]
    lists._learn("main", body)
    assert lists._seen == {}


def test_what_is_remembered_is_bounded() -> None:
    lists = ModelLists(CONFIG, NoStore())  # type: ignore[arg-type]
    data = [
        {"id": f"m{n}", "root": "x" * (MAX_TEXT + 1), "permission": [{}] * 9, "max_model_len": 9}
        for n in range(MAX_MODELS + 9)
    ]
    lists._learn("main", json.dumps({"data": data}).encode())
    assert len(lists._seen["main"]) == MAX_MODELS
    first = lists._seen["main"][0]
    assert (first["id"], first["max_model_len"]) == ("m0", 9)
    assert not {"root", "permission"} & set(first)


def sent_on(
    *pieces: bytes, kind: str = "application/json", status: int = 200, more: Any = ()
) -> tuple[list[Message], list[bytes]]:
    """What the client gets of an answer, and what was learnt from it."""
    sent: list[Message] = []
    learnt: list[bytes] = []

    def learn(body: bytes) -> list[dict[str, Any]]:
        learnt.append(body)
        return model_list._entries(body)

    async def go() -> None:
        send = model_list._ListSend(into(sent), learn, more)
        length = str(sum(map(len, pieces))).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            await send({"type": "http.response.body", "body": piece, "more_body": not last})

    asyncio.run(go())
    return sent, learnt


def content(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


MORE = [{"id": "b", "object": "model"}]


def test_a_list_in_pieces_is_completed_and_has_its_new_length() -> None:
    sent, learnt = sent_on(b'{"data": [{"id"', b': "a"}], "x": 1}', more=MORE)
    assert learnt == [b'{"data": [{"id": "a"}], "x": 1}']
    assert json.loads(content(sent)) == {"data": [{"id": "a"}, *MORE], "x": 1}
    lengths = [value for name, value in sent[0]["headers"] if name == b"content-length"]
    assert lengths == [str(len(content(sent))).encode()]


@pytest.mark.parametrize(
    ("pieces", "options"),
    [
        ([b'{"data": [{"id": "b"}]}'], {}),
        ([b"no list"], {}),
        ([b'{"data": [{"id": "a"}]}'], {"status": 401}),
        ([b'{"data": [{"id": "a"}]}'], {"kind": "text/html"}),
        ([b"x" * MAX_BYTES, b"y", b"z"], {}),
        ([b"x" * MAX_BYTES, b"y", b"", b"z" * 9], {"kind": "application/json; charset=utf-8"}),
    ],
    ids=["known", "no list", "refused", "HTML", "long", "long in pieces"],
)
def test_every_other_answer_passes_as_it_is(pieces: list[bytes], options: Any) -> None:
    sent, _ = sent_on(*pieces, more=MORE, **options)
    assert content(sent) == b"".join(pieces)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(content(sent))).encode()
    assert not sent[-1]["more_body"]
