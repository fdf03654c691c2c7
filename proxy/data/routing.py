"""Choose the GPU that a request goes to: by host, tier and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenctl.config.deployment import Config
from qwenctl.core.lifecycle import Phase

from ..http.cookies import TIER_COOKIE
from ..http.request import Request
from .model_finder import asked_tier

__all__ = [
    "gpu_of",
    "tier_status",
]


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


def tier_status(tier: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise a `page_status` for the choice of a tier.

    ``state`` is ``ready``, ``waking``, ``asleep``, ``failed`` or ``blocked``; ``seconds`` is the
    expected time until it is ready, or None.
    """
    phase = Phase(status["phase"])
    seconds = None
    if phase.serves:
        state = "ready"
    elif status["blocked"]:
        state = "blocked"
    elif phase is Phase.DRAINING and not status.get("interruption"):
        state = "ready"  # the next request turns the drain back
    elif status["wanted"] and phase is not Phase.FAILED:
        state, seconds = "waking", status["eta_seconds"]
    elif phase is Phase.FAILED:
        state = "failed"
    else:
        state = "asleep"
        seconds = sum(step["expected"] or 0.0 for step in status["steps"])
    return {"tier": tier, "gpu": status["gpu"], "state": state, "seconds": seconds or None}
