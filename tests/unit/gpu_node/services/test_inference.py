"""A first inference over real HTTP: an OpenAI-like server, and servers that answer badly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_node.services.inference import InferenceFailed, infer_once
from qwenctl.protocol.messages import Readiness
from tests.support.net import free_port
from tests.support.openai_api import OpenAIServer


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def readiness(**more: Any) -> Readiness:
    return Readiness(**{"inference": "openai", "inference_timeout": 30.0, **more})


def why(url: str, asked: Readiness, **more: Any) -> str:
    with pytest.raises(InferenceFailed) as caught:
        infer_once(url, asked, **more)
    assert "\n" not in str(caught.value)
    wait_for_threads()
    return str(caught.value)


def wait_for_threads() -> None:
    end = time.monotonic() + 20
    while any(thread.name == "inference" for thread in threading.enumerate()):
        assert time.monotonic() < end, "a thread of an inference is left"
        time.sleep(0.01)


def test_one_token_of_the_first_model(openai: OpenAIServer) -> None:
    infer_once(openai.url, readiness())
    (asked,) = openai.asked
    assert (asked["model"], asked["max_tokens"]) == ("qwen3-vl", 1)
    assert [message["role"] for message in asked["messages"]] == ["user"]


def test_one_token_of_the_model_that_is_named(openai: OpenAIServer) -> None:
    openai.models = []
    infer_once(openai.url, readiness(model="another"))
    assert openai.asked[0]["model"] == "another"


def test_an_api_key_is_sent(openai: OpenAIServer) -> None:
    openai.api_key = "sk-of-this-test"
    infer_once(openai.url, readiness(), api_key="sk-of-this-test")
    assert why(openai.url, readiness()) == "GET /v1/models answered 401: Unauthorized"


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (500, b'{"error":{"message":"CUDA\\nout of memory"}}', "answered 500: CUDA out of memory"),
        (503, b'{"message":"loading"}', "answered 503: loading"),
        (422, b'{"detail":[{"loc":["body"]}]}', "answered 422"),
        (404, b"<html>", "answered 404"),
        (302, b"", "answered 302"),
        (200, b'{"choices":[]}', "answered without a choice"),
        (200, b"[]", "answered without a choice"),
        (200, b"<html>", "answered with no JSON"),
        (200, b"", "answered with no JSON"),
    ],
)
def test_a_failure_is_one_sentence(
    status: int, body: bytes, says: str, openai: OpenAIServer
) -> None:
    openai.answers = [(status, body)]
    assert why(openai.url, readiness()) == f"POST /v1/chat/completions {says}"
    infer_once(openai.url, readiness())


def test_what_nobody_has_foreseen_is_a_failure_too(openai: OpenAIServer) -> None:
    openai.answers = [(200, b"[" * 500_000)]
    assert why(openai.url, readiness()) == "it was not understood (RecursionError)"
    told = why(openai.url, readiness(), api_key="sk-0123456789\nabcdef")
    assert told == "it was not understood (ValueError)"


def test_a_server_without_models(openai: OpenAIServer) -> None:
    openai.models = []
    assert why(openai.url, readiness()) == "GET /v1/models lists no model"


def test_nobody_listens() -> None:
    told = why(f"http://127.0.0.1:{free_port()}", readiness())
    assert told.startswith("the connection broke: ")
    assert "refused" in told


def test_one_that_hangs_is_given_up_and_notices(openai: OpenAIServer) -> None:
    openai.hangs = True
    asked = readiness(inference_timeout=0.3)
    assert why(openai.url, asked) == "no answer within 0.3 s"
    assert openai.gone.wait(20)


def test_one_that_is_no_longer_wanted_is_given_up_and_notices(openai: OpenAIServer) -> None:
    openai.hangs = True
    told = why(openai.url, readiness(inference_timeout=600.0), unwanted=lambda: bool(openai.asked))
    assert told == "given up"
    assert openai.gone.wait(20)


@contextlib.contextmanager
def raw_server(*answers: bytes) -> Iterator[str]:
    """Answers each connection with these bytes, whatever it is asked, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)
        assert not thread.is_alive()


JOINED = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"event_id":"a/b"}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
GRADIO = Readiness(inference="gradio", api_name="/predict", inference_timeout=30.0)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"event: error\ndata: null\n\n", "/predict failed: its log says why"),
        (b'event: error\r\ndata: "no memory"\r\n\r\n', "/predict failed: no memory"),
        (b'event: error\ndata: {"error": "no\\nmemory"}\n\n', "/predict failed: no memory"),
        (b"event: error\ndata: {\n\n", "/predict failed: its log says why"),
        (b"event: heartbeat\ndata: null\n\n", "/predict ended without a result"),
        (
            b"event: generating\ndata: [1]\n\nevent: error\ndata: null\n\n",
            "/predict failed: its log says why",
        ),
        (b"data: complete\n\n", "/predict ended without a result"),
        (b"", "/predict ended without a result"),
    ],
)
def test_what_a_gradio_stream_says(stream: bytes, says: str) -> None:
    with raw_server(JOINED, STREAM + stream) as url:
        assert why(url, GRADIO) == says


def test_a_gradio_stream_that_completes() -> None:
    generating = b"event: generating\ndata: [1]\n\nevent: heartbeat\ndata: null\n\n"
    with raw_server(JOINED, STREAM + generating + b"event: complete\ndata: [2]\n\n") as url:
        infer_once(url, GRADIO)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "answered without an event_id"),
        (b"HTTP/1.1 500 no\r\nContent-Length: 2\r\n\r\nno", "answered 500"),
    ],
)
def test_a_gradio_app_that_takes_no_call(answer: bytes, says: str) -> None:
    with raw_server(answer) as url:
        assert why(url, GRADIO) == f"POST /gradio_api/call/predict {says}"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nX:" * 99])
def test_something_that_is_no_http_server(answer: bytes) -> None:
    with raw_server(answer) as url:
        assert why(url, GRADIO)


def test_a_stream_without_an_end_of_line_is_given_up() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            first, _ = listener.accept()
            with first:
                first.recv(65536)
                first.sendall(JOINED)
            second, _ = listener.accept()
            with second, contextlib.suppress(OSError):
                second.sendall(STREAM)
                while not stop.wait(0.02):
                    second.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asked = GRADIO.model_copy(update={"inference_timeout": 0.5})
        try:
            assert why(url, asked) == "no answer within 0.5 s"
        finally:
            stop.set()
            thread.join(20)
