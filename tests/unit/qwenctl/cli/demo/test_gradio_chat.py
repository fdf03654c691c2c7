"""The Gradio client's own logic; the protocol itself is tried on the real app in tests/e2e."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from qwenctl.cli.demo import gradio_chat
from qwenctl.cli.demo.gradio_chat import ChatError, ChatTimeout, chat, sample_png
from qwenctl.errors import ExitCode

CONFIG = b'{"api_prefix":"/gradio_api","dependencies":[{"id":3,"api_name":"chat","inputs":[0,1]}]}'


@contextmanager
def server(answers: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """A web server that gives these answers (status and body) and 404 for any other path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path.split("?")[0], (404, b"not here"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def events(*messages: str) -> dict[str, tuple[int, bytes]]:
    """An app whose event stream says these messages."""
    return {
        "/config": (200, CONFIG),
        "/gradio_api/queue/join": (200, b'{"event_id":"e"}'),
        "/gradio_api/queue/data": (200, "".join(f"data: {m}\n\n" for m in messages).encode()),
    }


def test_sample_png_is_a_valid_png_with_three_colours() -> None:
    png = sample_png(30, 20)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    position, chunks = 8, {}
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack(">I", png[position + 8 + length : position + 12 + length])
        assert checksum == zlib.crc32(kind + content)
        chunks[kind] = content
        position += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 30, 20, 8, 2, 0, 0, 0)
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert len(pixels) == 20 * (1 + 30 * 3)
    rows = [pixels[i + 1 : i + 91] for i in range(0, len(pixels), 91)]
    assert len({row[i : i + 3] for row in rows for i in range(0, 90, 3)}) == 3


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ([["append", [], " b"]], "a b"),
        ([["replace", [], "z"]], "z"),
        ([["append", [], "b"], ["append", [], "c"]], "abc"),
        ([], "a"),
    ],
)
def test_differences_of_a_text(difference: list[object], expected: str) -> None:
    assert gradio_chat._patched(["a"], [difference]) == [expected]


def test_differences_of_a_nested_value() -> None:
    before = [[{"role": "user", "content": "hi"}], {"keep": 1, "drop": 2}]
    after = gradio_chat._patched(
        before,
        [
            [
                ["add", [1], {"role": "assistant", "content": "a"}],
                ["append", [1, "content"], "b"],
                ["replace", [0, "content"], "hello"],
            ],
            [["delete", ["drop"], None], ["add", ["new"], 3]],
        ],
    )
    assert after == [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ab"}],
        {"keep": 1, "new": 3},
    ]


def test_answer_without_a_last_value_is_put_together_from_the_differences() -> None:
    app = events(
        '{"msg":"process_generating","success":true,"output":{"data":["a",null]}}',
        '{"msg":"heartbeat"}',
        '{"msg":"process_generating","success":true,"output":{"data":[[["append",[],"b"]],[]]}}',
        '{"msg":"process_completed","success":true,"output":{}}',
        '{"msg":"close_stream"}',
    )
    with server(app) as url:
        result = chat(url, "hello")
    assert result.text == "ab"
    assert 0 < result.first_token_seconds <= result.seconds


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({}, "/config answered 404."),
        ({"/config": (503, b'{"detail":"asleep."}')}, "/config answered 503: asleep."),
        ({"/config": (200, b"<html>")}, "did not answer with JSON; is a Gradio app there?"),
        ({"/config": (200, b"[]")}, "is not the configuration of a Gradio app."),
        ({"/config": (200, b'{"dependencies":[]}')}, "has no endpoint named 'chat'."),
        ({"/config": (200, CONFIG)}, "/gradio_api/queue/join answered 404."),
        (events(), "ended the event stream before the answer was complete."),
        (events("{"), "sent an event that is no JSON."),
        (
            events('{"msg":"process_completed","success":false,"output":{"error":"no memory"}}'),
            "failed to answer: no memory.",
        ),
        (
            events('{"msg":"unexpected_error","message":"Server stopped unexpectedly"}'),
            "gave up: Server stopped unexpectedly.",
        ),
    ],
)
def test_each_failure_is_one_sentence(answers: dict[str, tuple[int, bytes]], sentence: str) -> None:
    with server(answers) as url, pytest.raises(ChatError) as caught:
        chat(url, "hello")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.FAILED


def test_a_cut_stream_is_one_sentence() -> None:
    # A longer body was promised than comes.
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with pytest.raises(ChatError, match="the connection was refused or lost"):
                chat(f"http://127.0.0.1:{httpd.server_port}", "hello")
        finally:
            httpd.shutdown()
            thread.join()


def test_nobody_listens(unused_port: int) -> None:
    with pytest.raises(ChatError, match="the connection was refused or lost"):
        chat(f"http://127.0.0.1:{unused_port}", "hello")


def test_a_missing_picture_is_named(tmp_path: object) -> None:
    with server({"/config": (200, CONFIG)}) as url:
        with pytest.raises(ChatError, match=r"Cannot read the picture .*none\.png: No such file"):
            chat(url, "hello", f"{tmp_path}/none.png")


def test_a_server_that_says_nothing_ends_in_a_timeout(silent_port: int) -> None:
    with pytest.raises(ChatTimeout, match=r"No complete answer from .* in 0\.3 s"):
        chat(f"http://127.0.0.1:{silent_port}", "hello", timeout=0.3)


def test_a_given_session_is_used_and_left_open() -> None:
    seen: list[str | None] = []

    class Session(requests.Session):
        closed = False

        def close(self) -> None:
            self.closed = True

        def send(self, request: requests.PreparedRequest, **kwargs: object) -> requests.Response:
            seen.append(request.headers.get("Authorization"))
            return super().send(request, **kwargs)  # type: ignore[arg-type]

    session = Session()
    session.headers["Authorization"] = "Bearer key"
    with server(
        events('{"msg":"process_completed","success":true,"output":{"data":["a"]}}')
    ) as url:
        assert chat(url, "hello", session=session).text == "a"
    assert seen == ["Bearer key"] * 3
    assert not session.closed


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is bound, so that nobody takes it, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]
