"""Pull an image and add up the progress of its layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwenctl.protocol.messages import Progress

__all__ = [
    "PullProgress",
    "pull_events",
]


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
        """Note one line of the daemon's answer to ``POST /images/create``."""
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
            # A small one is complete before its size is told.
            layer.total = layer.downloaded = max(layer.total, 1)
        elif status == "Pull complete":
            layer.total = layer.downloaded = layer.extracted = max(layer.total, 1)

    def view(self) -> Progress:
        """For the waiting page; the percentage never goes back."""
        known = [layer for layer in self._layers.values() if layer.total]
        if not known:
            return Progress(phase="pull", percent=0.0 if self._layers else None)
        usual = sum(layer.total for layer in known) / len(known)
        # A layer that has not begun is taken for one of the usual size.
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
    """As Docker itself writes sizes: powers of 1000."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


REGISTRY_PATIENCE = 120.0
"""Seconds without a word from the registry until a pull is given up."""

API_TIMEOUT = 60.0
"""Seconds that one call to the daemon may take."""


def pull_events(client: Any, name: str) -> Iterator[dict[str, Any]]:
    """What the daemon says of a pull. Unlike the SDK's own `pull` it gives up a registry that says
    nothing: a new request would only join the download that hangs."""
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
