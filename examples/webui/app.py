#!/usr/bin/env python3
"""A chat page with image upload and streamed answers: a stand-in for the Qwen3-VL WebUI.

It is a real Gradio app, so its queue, uploads, file routes and event streams are the real ones, but
there is no model behind it and it needs no network: it measures the picture with Pillow (size,
colours, brightness) and streams what it found word by word, in the language of the question.

    python app.py --load-seconds 10 --tokens-per-second 15

While it "loads weights" the port refuses connections and each step is printed as one line:

    QWENCTL_PROGRESS {"phase":"weights","percent":40,"text":"…"}

``GET /activity`` answers ``{"active": N}``, the number of generations running now.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageStat

if TYPE_CHECKING:
    from fastapi import FastAPI

COLOURS: dict[tuple[int, int, int], tuple[str, str]] = {
    (0, 0, 0): ("black", "黑色"),
    (64, 64, 64): ("dark grey", "深灰色"),
    (128, 128, 128): ("grey", "灰色"),
    (200, 200, 200): ("light grey", "浅灰色"),
    (255, 255, 255): ("white", "白色"),
    (220, 30, 30): ("red", "红色"),
    (130, 20, 20): ("dark red", "深红色"),
    (250, 150, 30): ("orange", "橙色"),
    (245, 225, 60): ("yellow", "黄色"),
    (120, 80, 40): ("brown", "棕色"),
    (235, 215, 180): ("beige", "米色"),
    (50, 170, 60): ("green", "绿色"),
    (20, 80, 35): ("dark green", "深绿色"),
    (50, 200, 200): ("turquoise", "青色"),
    (135, 195, 240): ("light blue", "浅蓝色"),
    (40, 90, 210): ("blue", "蓝色"),
    (20, 30, 90): ("dark blue", "深蓝色"),
    (130, 60, 180): ("purple", "紫色"),
    (245, 150, 190): ("pink", "粉色"),
}
"""Reference colours (RGB) and their names in English and Chinese."""

GREETING = (
    (
        "I am the sample WebUI: no model runs here.",
        "Upload a picture and ask about it, and I will describe its size, colours and brightness.",
        "Every word is sent as soon as it is ready, as a model would send it.",
    ),
    (
        "我是示例界面，这里没有运行任何模型。",
        "请上传一张图片并提问，我会描述它的尺寸、颜色和亮度。",
        "每个词一生成就立即发送，就像真正的模型那样。",
    ),
)
UNREADABLE = (
    "This file is not a picture that I can read. Please upload a PNG, JPEG or WebP file.",
    "我无法读取这个文件。请上传 PNG、JPEG 或 WebP 格式的图片。",
)

WORD = re.compile(r"\s*(?:[\u2e80-\uffef]|[^\s\u2e80-\uffef]+)")
"""One word, or one Chinese character, with the space before it."""

FINEST_GRID = 16
"""The longest answer goes through the picture in this many rows and columns."""


def is_chinese(text: str) -> bool:
    """Whether the text has a Chinese character in it."""
    return re.search(r"[\u3400-\u9fff]", text) is not None


def colour_name(rgb: tuple[int, int, int], zh: bool) -> str:
    """The name of the reference colour nearest to ``rgb``."""
    nearest = min(COLOURS, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, rgb)))
    return COLOURS[nearest][zh]


def colour_shares(image: Image.Image, zh: bool) -> list[tuple[str, int]]:
    """The three most frequent colours of an RGB image with their percentages, most first."""
    small = image.resize((32, 32), Image.Resampling.NEAREST)
    pixels = small.tobytes()
    names = Counter(
        colour_name((pixels[i], pixels[i + 1], pixels[i + 2]), zh) for i in range(0, len(pixels), 3)
    )
    return [(name, round(100 * n / (32 * 32))) for name, n in names.most_common(3)]


def describe(image: Image.Image, zh: bool) -> Iterator[str]:
    """Sentences about the picture: first the summary, then region by region, ever finer."""
    rgb = image.convert("RGB")
    width, height = rgb.size
    gray = ImageStat.Stat(rgb.convert("L"))
    mean, contrast = round(gray.mean[0]), round(gray.stddev[0])
    shares = colour_shares(rgb, zh)
    light = 0 if mean < 85 else 1 if mean < 170 else 2
    shape = 0 if width > height else 1 if width < height else 2
    if zh:
        yield f"这张图片是{('横向', '竖向', '正方形')[shape]}的，尺寸为 {width} × {height} 像素。"
        yield "主要颜色：" + "、".join(f"{name} {share}%" for name, share in shares) + "。"
        tone = ("偏暗", "亮度适中", "明亮")[light]
        yield f"整体{tone}（平均 {mean}，最高 255），对比{'强烈' if contrast > 60 else '柔和'}。"
    else:
        form = ("landscape", "portrait", "square")[shape]
        yield f"The picture is {width} × {height} pixels, in {form} format."
        yield "Its main colours: " + ", ".join(f"{name} {share}%" for name, share in shares) + "."
        tone = ("dark", "of medium brightness", "bright")[light]
        edge = "strong" if contrast > 60 else "soft"
        yield f"It is {tone} (mean {mean} of 255) with {edge} contrast."
    for grid in range(3, FINEST_GRID + 1):
        cells = rgb.resize((grid, grid), Image.Resampling.BOX).tobytes()
        for row in range(grid):
            for column in range(grid):
                start = 3 * (row * grid + column)
                name = colour_name((cells[start], cells[start + 1], cells[start + 2]), zh)
                if zh:
                    yield f"按 {grid} × {grid} 网格看，第 {row + 1} 行第 {column + 1} 列是{name}。"
                else:
                    yield f"In a {grid} × {grid} grid, row {row + 1} column {column + 1} is {name}."


def words_of(sentences: Iterable[str], zh: bool) -> Iterator[str]:
    """The pieces that join to the text: words in English, single characters in Chinese."""
    for index, sentence in enumerate(sentences):
        yield from WORD.findall(sentence if zh or index == 0 else " " + sentence)


def write_answer(question: str, picture: Path | None, count: int) -> list[str]:
    """The whole answer as at most ``count`` pieces that join to the text."""
    zh = is_chinese(question)
    if picture is None:
        return list(islice(words_of(cycle(GREETING[zh]), zh), count))
    try:
        with Image.open(picture) as image:
            sentences = chain(describe(image, zh), cycle(GREETING[zh]))
            return list(islice(words_of(sentences, zh), count))
    except (OSError, ValueError, Image.DecompressionBombError):
        return list(words_of((UNREADABLE[zh],), zh))


def files_in(content: object) -> list[str]:
    """Paths of the files in a message; text is never taken for a path.

    Gradio 5 keeps a file as a tuple or a dict, Gradio 6 in a list of content parts.
    """
    if isinstance(content, tuple):
        return [str(content[0])]
    if isinstance(content, list):
        return [path for part in content for path in files_in(part)]
    if isinstance(content, dict):
        return [str(content["path"])] if "path" in content else files_in(content.get("file"))
    return []


def latest_picture(message: dict[str, Any], history: list[dict[str, Any]]) -> Path | None:
    """The picture of this message, else the last one sent before it in the conversation."""
    if message.get("files"):
        return Path(message["files"][-1])
    for earlier in reversed(history):
        if files := files_in(earlier.get("content")):
            return Path(files[-1])
    return None


class Chat:
    """Answers questions at a set pace and counts the answers that are being written."""

    def __init__(self, *, tokens_per_second: float, answer_words: int) -> None:
        self.active = 0
        self._pause = 1 / tokens_per_second  # seconds between two words
        self._words = answer_words

    async def answer(
        self, message: dict[str, Any], history: list[dict[str, Any]]
    ) -> AsyncIterator[str]:
        """Stream the answer: each item is the text so far."""
        self.active += 1
        try:
            picture = latest_picture(message, history)
            words = await asyncio.to_thread(
                write_answer, message.get("text") or "", picture, self._words
            )
            text, due = "", time.monotonic()
            for word in words:
                text += word
                yield text
                due += self._pause  # on a schedule, so that slow sending does not add up
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            self.active -= 1


def build(chat: Chat) -> FastAPI:
    """The web application: Gradio at ``/`` and ``GET /activity`` beside it."""
    # Before the import, which reads them: nothing is sent to or fetched from anywhere else.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", HF_HUB_OFFLINE="1"
    )
    import gradio as gr
    from fastapi import FastAPI

    # System fonts; themes otherwise name fonts that some versions load from another host.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    major = int(gr.__version__.split(".")[0])
    # Gradio 6 moved the theme to the launch and has only one format of messages.
    for_interface: dict[str, Any] = {"type": "messages", "theme": theme} if major < 6 else {}
    for_mount: dict[str, Any] = {"theme": theme} if major >= 6 else {}
    interface = gr.ChatInterface(
        chat.answer,
        multimodal=True,
        textbox=gr.MultimodalTextbox(
            file_types=["image"],
            file_count="single",
            stop_btn=True,
            placeholder="Ask about a picture… / 上传图片并提问……",
        ),
        title="Sample vision chat · 示例看图对话",
        description="A stand-in for the Qwen3-VL WebUI without a model. 不含模型的 Qwen3-VL 示例界面。",
        api_name="chat",
        concurrency_limit=8,
        delete_cache=(3600, 86400),  # seconds: each hour, uploads older than a day
        **for_interface,
    )

    app = FastAPI(openapi_url=None)

    @app.get("/activity")
    async def activity() -> dict[str, int]:
        return {"active": chat.active}

    gr.mount_gradio_app(app, interface, path="/", ssr_mode=False, **for_mount)
    return app


def progress(percent: int, text: str) -> None:
    """Print a line that the node's agent shows on the waiting page."""
    line = json.dumps(
        {"phase": "weights", "percent": percent, "text": text},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    print(f"QWENCTL_PROGRESS {line}", flush=True)


def load_weights(seconds: float) -> None:
    """Take that many seconds and tell the progress, as a server does that loads a large model."""
    started = time.monotonic()
    for percent in range(0, 101, 5):
        time.sleep(max(0.0, started + seconds * percent / 100 - time.monotonic()))
        progress(percent, f"loading weights, {percent} %")


def _number(low: float, high: float, kind: type[float] = float) -> Any:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; an option that is not given comes from its environment variable."""
    parser = argparse.ArgumentParser(
        description="A chat page with image upload and streamed answers, with no model behind it.",
        epilog="Each option can also be set by the environment variable in brackets.",
    )

    def option(name: str, default: str, text: str, kind: Any = str) -> None:
        variable = "WEBUI_" + name.upper().replace("-", "_")
        parser.add_argument(
            f"--{name}",
            default=os.environ.get(variable, default),
            type=kind,
            metavar="TEXT" if kind is str else "N",
            help=f"{text} (default: {default}) [{variable}]",
        )

    option("host", "127.0.0.1", "address to listen on")
    option("port", "7860", "port to listen on", _number(1, 65535, int))
    option("load-seconds", "0", "pretend to load weights for so long", _number(0, 86400))
    option("tokens-per-second", "20", "speed of an answer", _number(0.1, 1000))
    option("answer-words", "60", "length of an answer", _number(1, 100_000, int))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Load, then serve until SIGTERM or Ctrl-C."""
    options = parse_arguments(argv)
    # Bound now, so that a taken port is told at once, but it refuses connections until it listens.
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        sys.exit(f"Cannot listen on {options.host} port {options.port}: {error.strerror or error}.")
    if options.load_seconds:
        load_weights(options.load_seconds)

    import uvicorn

    chat = Chat(tokens_per_second=options.tokens_per_second, answer_words=options.answer_words)
    server = uvicorn.Server(
        uvicorn.Config(
            build(chat),
            log_level="info",
            access_log=False,
            # An open tab holds an event stream that never ends by itself.
            timeout_graceful_shutdown=2,
        )
    )
    server.run(sockets=[listener])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
