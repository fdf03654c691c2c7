"""Chat with a Gradio app over HTTP, for `qwenctl demo --once`.

Works with any app that names its chat endpoint ``chat``, as ``gr.ChatInterface`` does.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.text import one_line

if TYPE_CHECKING:
    from gradio_client import Client


POLL_SECONDS = 0.005
"""Seconds between two reads of the answer; the accuracy of ``first_token_seconds``."""

_PRIVATE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
"""Gradio's client reports to gradio.app and sends the user's Hugging Face token unless these are set."""


@dataclass(frozen=True)
class ChatResult:
    """A complete answer. Times are seconds since the message was sent."""

    text: str
    first_token_seconds: float
    seconds: float


def chat(
    base_url: str, text: str, picture: Path | None = None, *, timeout: float = 120.0
) -> ChatResult:
    """Send a message, with a picture if there is one, and wait for the whole answer.

    Raises:
        UserError: the app cannot be reached or failed to answer (exit code 6), or its answer was not
            complete after ``timeout`` seconds (5).
    """
    os.environ.update(_PRIVATE)  # the import reads them
    from gradio_client import Client
    from httpx import TimeoutException

    deadline = time.monotonic() + timeout
    try:
        with contextlib.closing(
            Client(base_url, verbose=False, download_files=False, httpx_kwargs={"timeout": timeout})
        ) as client:
            return _ask(client, text, picture, deadline)
    except (TimeoutError, TimeoutException):
        problem, code = f"no complete answer in {timeout:g} s", ExitCode.TIMEOUT
    except Exception as error:  # the client's, httpx's and the app's
        problem, code = one_line(str(error) or type(error).__name__), ExitCode.FAILED
    raise UserError(f"the chat with {base_url} failed: {problem}", code)


def _ask(client: Client, text: str, picture: Path | None, deadline: float) -> ChatResult:
    from gradio_client import handle_file

    files = [] if picture is None else [handle_file(picture)]
    sent, first = time.monotonic(), None
    job = client.submit({"text": text, "files": files}, api_name="/chat")
    while not job.done():
        if time.monotonic() > deadline:
            job.cancel()
            raise TimeoutError
        if first is None and any(job.outputs()):
            first = time.monotonic()
        time.sleep(POLL_SECONDS)
    answer, done = job.result(), time.monotonic()
    return ChatResult(str(answer), (first or done) - sent, done - sent)


def sample_png(width: int = 96, height: int = 64) -> bytes:
    """Return a small PNG: a red square between a blue sky and a green field."""
    picture = Image.new("RGB", (width, height), (40, 90, 210))
    picture.paste((50, 170, 60), (0, height // 2, width, height))
    side = min(width, height) // 3
    left, top = (width - side) // 2, (height - side) // 2
    picture.paste((220, 30, 30), (left, top, left + side, top + side))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
