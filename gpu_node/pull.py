"""How far the pull of an image is, out of what the Docker daemon says of each layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenctl.wire import Progress

__all__ = ["PullProgress"]


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
