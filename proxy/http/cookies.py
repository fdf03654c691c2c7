"""The proxy's own cookies: their names and flags."""

from __future__ import annotations

from werkzeug.http import dump_cookie

from .request import Request

SESSION_COOKIE = "qwenctl_session"

TIER_COOKIE = "qwenctl_tier"
"""The tier that a visitor has chosen among several GPUs."""

VISIT_COOKIE = "qwenctl_visit"
"""Distinguishes visitors who share an address and need not sign in (`visit_slot`). Optional."""

VISIT_SLOTS = "0123456789abcdef"
"""Its values. So few, because each is a lease that anybody may ask for."""

OUR_COOKIES = (SESSION_COOKIE, TIER_COOKIE, VISIT_COOKIE)


def set_cookie(request: Request, name: str, value: str, seconds: float | None = None) -> str:
    """Return the Set-Cookie value; the cookie lasts ``seconds``, or until the browser closes."""
    return dump_cookie(
        name,
        value,
        max_age=None if seconds is None else int(seconds),
        httponly=True,
        samesite="Lax",
        secure=request.proto == "https",
    )


def visit_slot(request: Request) -> str:
    """Return the value of `VISIT_COOKIE`, one of `VISIT_SLOTS`, or an empty text."""
    slot = request.cookie(VISIT_COOKIE)
    return slot if len(slot) == 1 and slot in VISIT_SLOTS else ""
