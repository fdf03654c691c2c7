"""Pull an image and add up the progress of its layers."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_node.services.docker_errors import error_text, is_hopeless
from gpu_node.services.runtime import StartFailed
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Progress

log = logging.getLogger(__name__)

PULL_ATTEMPTS, PULL_PAUSE = 3, 3.0
"""Attempts, and seconds between two; the next attempt goes on where the last broke off."""


@dataclass
class _Layer:
    total: int = 0
    """Bytes to download; 0: not known yet."""
    downloaded: int = 0
    extracted: int = 0


class PullProgress:
    """Adds up a pull's layers. Downloading and unpacking count half each: unpacking tens of
    gigabytes takes as long as a fast network."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}
        self._percent = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a line of the daemon's answer to ``POST /images/create``."""
        name, status = event.get("id"), str(event.get("status") or "")
        if not name or status.startswith(("Pulling from", "Already exists")):
            return
        detail = event.get("progressDetail") or {}
        current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        layer = self._layers.setdefault(str(name), _Layer())
        if total > 0 and status == "Downloading":
            layer.total = total
            layer.downloaded = max(layer.downloaded, min(current, total))
        elif total > 0 and status == "Extracting":
            layer.total = layer.downloaded = total
            layer.extracted = max(layer.extracted, min(current, total))
        elif status in ("Download complete", "Verifying Checksum"):
            # A small layer is complete before its size is known.
            layer.total = layer.downloaded = max(layer.total, 1)
        elif status == "Pull complete":
            layer.total = layer.downloaded = layer.extracted = max(layer.total, 1)

    def view(self) -> Progress:
        """Return the progress so far; the percentage never falls."""
        known = [layer for layer in self._layers.values() if layer.total]
        if not known:
            return Progress(phase="pull", percent=0.0 if self._layers else None)
        usual = sum(layer.total for layer in known) / len(known)
        # A layer that has not begun counts as one of the usual size.
        total = sum(layer.total or usual for layer in self._layers.values())
        done = sum(layer.downloaded + layer.extracted for layer in known) / 2
        self._percent = max(self._percent, min(100.0, 100.0 * done / total))
        here = sum(layer.downloaded for layer in known)
        return Progress(
            phase="pull",
            percent=round(self._percent, 1),
            text=f"{_size(here)} / {_size(int(total))}",
        )


def _size(count: int) -> str:
    """Format a size as Docker itself does, by powers of 1000."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


REGISTRY_PATIENCE = 120.0
"""Seconds without data from the registry until a pull is given up."""

API_TIMEOUT = 60.0
"""Seconds that one call to the daemon may take."""


def pull_events(client: Any, name: str) -> Iterator[dict[str, Any]]:
    """Pull an image and yield the daemon's events. Unlike the SDK's own `pull` it gives up a
    registry that sends nothing: a new request would only join the download that hangs."""
    from docker import auth
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(name)
    registry, _ = auth.resolve_repository_name(repository)
    header = auth.get_config_header(client, registry)
    with client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params={"fromImage": repository, "tag": tag or "latest"},
        headers={"X-Registry-Auth": header} if header else {},
        timeout=(API_TIMEOUT, REGISTRY_PATIENCE),
        stream=True,
    ) as answer:
        if answer.status_code >= 400:
            yield {"error": answer.json().get("message", f"status {answer.status_code}")}
            return
        for line in answer.iter_lines():
            if line:
                yield json.loads(line)


class Leaving(Exception):
    """The service is to be stopped, or left to the next agent: nothing more is to be begun."""


def pull_image(
    name: str,
    connect: Callable[[], Any],
    leaving: threading.Event,
    report: Callable[[Progress], None],
) -> None:
    """Pull an image, and try again when the connection breaks.

    Args:
        name: the image.
        connect: makes a client of the daemon.
        leaving: set when the service is to be stopped or left to the next agent.
        report: takes the progress, at most five times a second.

    Raises:
        StartFailed: the registry refused, or the pull broke off `PULL_ATTEMPTS` times.
        Leaving: ``leaving`` was set.
    """
    for attempt in range(1, PULL_ATTEMPTS + 1):
        problem = _pull_once(name, connect, leaving, report)
        if not problem:
            return
        if sentence := is_hopeless(name, problem):
            raise StartFailed(sentence, final=True)
        if attempt == PULL_ATTEMPTS:
            raise StartFailed(f"the image {name} cannot be pulled: {problem}")
        log.warning("pulling %s broke off (%s); trying again", name, problem)
        if leaving.wait(PULL_PAUSE * attempt):
            raise Leaving


def _pull_once(
    name: str,
    connect: Callable[[], Any],
    leaving: threading.Event,
    report: Callable[[Progress], None],
) -> str:
    """Pull once; return the problem, or nothing."""
    events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    given_up = threading.Event()

    def read() -> None:
        """Put the daemon's events into the queue, None at the end of a good pull.

        Closing the answer makes the daemon abandon the pull.
        """
        try:
            with contextlib.closing(connect()) as client:
                for event in pull_events(client, name):
                    if given_up.is_set():
                        return
                    events.put(event)
                    if "error" in event:
                        return
        except Exception as error:
            events.put({"error": error_text(error)})
        else:
            events.put(None)

    threading.Thread(target=read, daemon=True).start()
    progress = PullProgress()
    reported = time.monotonic()
    try:
        while True:
            if leaving.is_set():
                raise Leaving
            try:
                event = events.get(timeout=0.2)
            except queue.Empty:
                continue
            if event is None:
                return ""
            if "error" in event:
                return redacted(str(event["error"]))
            progress.take(event)
            if time.monotonic() - reported >= 0.2:
                reported = time.monotonic()
                report(progress.view())
    finally:
        given_up.set()
