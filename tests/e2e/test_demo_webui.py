"""The sample WebUI (examples/webui/app.py), started for real and used over HTTP as its page does."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from qwenctl.cli.demo.chat import chat, sample_png
from qwenctl.core.presets import PRESETS
from qwenctl.core.rules import RuleTable
from tests.support.net import free_port
from tests.support.paths import ROOT

APP = ROOT / "examples" / "webui" / "app.py"

# In CI a missing Gradio is a failure: there the demo must have been tried.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None and not os.environ.get("CI"),
        reason="gradio is not installed: pip install 'qwenctl[demo]'",
    ),
]


@contextmanager
def webui(*options: str) -> Iterator[str]:
    """Run the app on a free port until it is ready; yields its address."""
    port = free_port()
    command = [sys.executable, str(APP), "--port", str(port), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            log = []
            for line in process.stderr:  # ends when the app does; the test's timeout bounds it
                log.append(line)
                if "Application startup complete" in line:
                    break
            else:
                pytest.fail("the app did not start:\n" + "".join(log))
            # Nobody may be left waiting for the pipe to be read.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_listens(port)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_it_listens(port: int) -> None:
    """Uvicorn says that it is ready shortly before it listens."""
    for _ in range(100):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the app did not open its port")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An app that takes 2 s to say 40 words."""
    with webui("--tokens-per-second", "20", "--answer-words", "40") as address:
        yield address


def active(url: str) -> int:
    return int(requests.get(f"{url}/activity", timeout=5).json()["active"])


def ask(url: str, session_hash: str, text: str = "hello") -> requests.Response:
    """Send a message as the page does; returns the open event stream."""
    config = requests.get(f"{url}/config", timeout=5).json()
    endpoint = next(d for d in config["dependencies"] if d["api_name"] == "chat")
    requests.post(
        f"{url}/gradio_api/queue/join",
        json={
            "data": [{"text": text, "files": []}, None],
            "fn_index": endpoint["id"],
            "session_hash": session_hash,
        },
        timeout=5,
    ).raise_for_status()
    return requests.get(
        f"{url}/gradio_api/queue/data",
        params={"session_hash": session_hash},
        stream=True,
        timeout=30,
    )


def messages(stream: requests.Response) -> Iterator[tuple[float, dict[str, Any]]]:
    for line in stream.iter_lines(chunk_size=None):
        if line.startswith(b"data:"):
            yield time.monotonic(), json.loads(line[5:])


def test_chat_with_a_picture_in_english(url: str, picture: Path) -> None:
    result = chat(url, "What is in this picture?", picture, timeout=30)
    assert "90 × 60 pixels" in result.text
    for colour in ("blue", "green", "red"):
        assert colour in result.text
    assert len(result.text.split()) == 40
    assert result.first_token_seconds < 1
    assert 1.9 < result.seconds < 6


def test_chat_with_a_picture_in_chinese(url: str, picture: Path) -> None:
    result = chat(url, "这张图片里有什么？", picture, timeout=30)
    assert "90 × 60 像素" in result.text
    assert "蓝色" in result.text
    assert "pixels" not in result.text


def test_the_answer_depends_on_the_picture(url: str, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "dark.jpg"
    Image.new("RGB", (40, 80), (0, 0, 0)).save(path)
    result = chat(url, "What is this?", path, timeout=30)
    assert "40 × 80 pixels, in portrait" in result.text
    assert "black 100%" in result.text
    assert "dark (mean 0 of 255)" in result.text


def test_a_broken_picture_gets_an_answer(url: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(sample_png()[:60])
    assert "not a picture that I can read" in chat(url, "What is this?", path, timeout=30).text


def test_words_arrive_one_by_one(url: str) -> None:
    with ask(url, "streaming") as stream:
        times = [at for at, m in messages(stream) if m["msg"] == "process_generating"]
    assert len(times) >= 40
    assert times[-1] - times[0] > 1.5  # 39 pauses of 50 ms, not one burst at the end
    assert max(b - a for a, b in itertools.pairwise(times)) < 1


def test_activity_counts_the_generations_running_now(url: str) -> None:
    assert active(url) == 0
    with ask(url, "one") as one, ask(url, "two") as two:
        streams = [messages(one), messages(two)]
        for stream in streams:
            assert any(m["msg"] == "process_generating" for _, m in stream)
        assert active(url) == 2
        with ThreadPoolExecutor() as pool:
            ends = list(pool.map(lambda stream: list(stream)[-1][1]["msg"], streams))
    assert ends == ["close_stream", "close_stream"]
    assert active(url) == 0


def test_a_visitor_who_leaves_stops_the_generation() -> None:
    with webui("--tokens-per-second", "10", "--answer-words", "10000") as url:
        with ask(url, "leaves") as stream:
            assert any(m["msg"] == "process_generating" for _, m in messages(stream))
            assert active(url) == 1
        deadline = time.monotonic() + 30  # Gradio looks every few seconds who is still there
        while active(url) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert active(url) == 0


def test_behind_a_proxy_the_app_names_the_public_address(url: str) -> None:
    headers = {"Host": "gpu.example.org", "X-Forwarded-Host": "gpu.example.org"}
    config = requests.get(
        f"{url}/config", headers={**headers, "X-Forwarded-Proto": "https"}, timeout=5
    ).json()
    assert config["root"] == "https://gpu.example.org"


@pytest.mark.browser
@pytest.mark.skipif(
    shutil.which("chromium") is None and not os.environ.get("CI"), reason="no Chromium here"
)
def test_each_request_of_a_browser_is_in_the_right_class(url: str, picture: Path) -> None:
    """The preset `gradio` against what Chromium sends today, not what it sent once."""
    from playwright.sync_api import Request, sync_playwright

    requests_made: list[Request] = []
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
    arguments += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    # The page of Gradio 5 asks another host for a script; it shall fail at once.
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

    def classes() -> dict[str, set[str]]:
        """Method and path of the requests made since the last call, by class."""
        found: dict[str, set[str]] = {}
        for request in requests_made:
            path = request.url.removeprefix(url).partition("?")[0]
            activity = RuleTable(PRESETS["gradio"]).classify(
                request.method, path, request.all_headers()
            )
            found.setdefault(activity.value, set()).add(f"{request.method} {path}")
        requests_made.clear()
        return found

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments
        )
        page = browser.new_page(locale="en-US")
        page.on("request", lambda r: requests_made.append(r) if r.url.startswith(url) else None)
        with page.expect_request("**/gradio_api/heartbeat/*"):
            page.goto(url + "/")
        page.locator("textarea").first.wait_for()
        loaded = classes()
        assert set(loaded) == {"keeps_on", "passive"}
        assert loaded["keeps_on"] == {"GET /"}
        assert all(made.startswith("GET ") for made in loaded["passive"])

        with page.expect_response("**/gradio_api/upload*"):
            page.locator("input[type=file]").first.set_input_files(picture)
        page.locator("textarea").first.fill("What is this?")
        page.locator("textarea").first.press("Enter")
        page.get_by_text("90 × 60 pixels").wait_for()
        page.locator(".stop-button").wait_for(state="hidden")  # the answer is complete
        page.wait_for_timeout(2000)  # the page saves the conversation
        chatted = classes()
        assert chatted["wakes"] == {
            "POST /gradio_api/upload",
            "POST /gradio_api/run/predict",
            "POST /gradio_api/queue/join",
        }
        assert chatted["keeps_on"] == {"GET /gradio_api/queue/data"}
        assert all(
            made.startswith(("GET /gradio_api/file=", "GET /assets/", "GET /static/"))
            for made in chatted["passive"]
        )

        page.wait_for_timeout(5000)
        assert classes() == {}, "an idle page asks for nothing"
        browser.close()


def test_loading_prints_progress_and_refuses_connections_meanwhile() -> None:
    port = free_port()
    command = [sys.executable, str(APP), "--port", str(port), "--load-seconds", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            percents = []
            for _ in range(2):
                assert select.select([process.stdout], [], [], 20)[0], "no progress line in 20 s"
                prefix, _, line = process.stdout.readline().partition(b" ")
                assert prefix == b"QWENCTL_PROGRESS"
                progress = json.loads(line)
                assert progress["phase"] == "weights"
                assert progress["text"]
                percents.append(progress["percent"])
            assert percents == [0, 5]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == -signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "http"], "'http' is not a number from 1 to 65535"),
        (["--tokens-per-second", "0"], "'0' is not a number from 0.1 to 1000"),
        (["--load-seconds", "nan"], "'nan' is not a number from 0 to 86400"),
    ],
)
def test_bad_options_are_refused(options: list[str], sentence: str) -> None:
    done = subprocess.run([sys.executable, str(APP), *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_taken_port_is_told_at_once_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**os.environ, "WEBUI_PORT": str(port), "WEBUI_LOAD_SECONDS": "60"}
        done = subprocess.run(
            [sys.executable, str(APP)], env=environment, capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 1
    assert done.stderr == f"Cannot listen on 127.0.0.1 port {port}: Address already in use.\n"
