"""A Gradio app with endpoints that succeed, fail, stream and take long."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import gradio as gr

__all__: list[str] = []


def stream(steps: float) -> Iterator[float]:
    for step in range(int(steps)):
        time.sleep(0.05)
        yield step


def fail(_: float) -> float:
    raise gr.Error("CUDA out of memory")


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    with gr.Blocks(analytics_enabled=False) as app:
        given, shown = gr.Number(), gr.Number()
        for function in (stream, fail, slow):
            gr.Button().click(function, given, shown, api_name=function.__name__)
    # One at a time, as with one model on one GPU; further ones wait in the queue.
    app.queue(default_concurrency_limit=1)
    app.launch(server_name="127.0.0.1", server_port=options.port, quiet=True)


if __name__ == "__main__":
    main()
