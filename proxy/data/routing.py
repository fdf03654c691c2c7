"""Choose the GPU that a request goes to: by host, tier and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenctl.config.deployment import Config

from ..http.cookies import TIER_COOKIE
from ..http.request import Request
from .model_finder import asked_tier


def gpu_of(config: Config, request: Request, model: str = "") -> str:
    """Return the GPU for a request, by host, headers and model; empty if none is configured.

    Raises:
        UnknownTier: the header names a tier that is not configured.
    """
    names = config.gpus_at(request.hostname)
    if len(names) < 2:
        return names[0] if names else ""
    return config.choose_gpu(
        names, tier=asked_tier(request), model=model, usual_tier=request.cookie(TIER_COOKIE)
    )


_TIER_STATES = {
    "ready": "ready",
    "draining": "ready",  # the next request turns the drain back
    "blocked": "blocked",
    "failed": "failed",
    "retrying": "failed",
}
"""States of tiers by the mode of their page."""


def tier_status(tier: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise a `page_status` for the choice of a tier.

    ``state`` is ``ready``, ``waking``, ``asleep``, ``failed`` or ``blocked``; ``seconds`` is the
    expected time until it is ready, or None.
    """
    waits = "waking" if status["wanted"] else "asleep"
    state = _TIER_STATES.get(status["mode"]["name"], waits)
    usual = sum(step["expected"] or 0.0 for step in status["steps"])
    seconds = {"waking": status["eta_seconds"], "asleep": usual}.get(state)
    return {"tier": tier, "gpu": status["gpu"], "state": state, "seconds": seconds or None}
