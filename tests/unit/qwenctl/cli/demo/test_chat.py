"""The demo's chat where no app answers; with the real app it is tried in tests/e2e."""

from __future__ import annotations

import io
import socket

import pytest
from pytest_httpserver import URI_DEFAULT, HTTPServer

from qwenctl.errors import ExitCode, UserError

pytest.importorskip("gradio_client")
Image = pytest.importorskip("PIL.Image")

from qwenctl.cli.demo.chat import chat, sample_png  # noqa: E402


def test_sample_png_is_a_valid_png_with_three_colours() -> None:
    with Image.open(io.BytesIO(sample_png(30, 20))) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (30, 20))
        assert len(picture.getcolors()) == 3
        assert picture.getpixel((15, 10)) == (220, 30, 30)


@pytest.fixture
def page(httpserver: HTTPServer) -> str:
    """The address of a web server that is no Gradio app."""
    httpserver.expect_request(URI_DEFAULT).respond_with_data("<html>")
    return httpserver.url_for("")


def test_another_page_is_one_sentence(page: str) -> None:
    with pytest.raises(UserError) as caught:
        chat(page, "hello", timeout=5)
    assert str(caught.value).startswith(f"the chat with {page} failed: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.FAILED


def test_nobody_listens() -> None:
    with socket.socket() as bound:  # so that nobody else takes the port
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="refused") as caught:
            chat(f"http://127.0.0.1:{bound.getsockname()[1]}", "hello", timeout=5)
    assert caught.value.exit_code is ExitCode.FAILED


def test_a_server_that_says_nothing_ends_in_a_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(UserError, match=r"no complete answer in 0\.3 s") as caught:
            chat(f"http://127.0.0.1:{listener.getsockname()[1]}", "hello", timeout=0.3)
    assert caught.value.exit_code is ExitCode.TIMEOUT
