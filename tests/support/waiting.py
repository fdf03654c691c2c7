"""Wait for a condition that sends no event, such as the state of another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 5.0, what: str = "it") -> T:
    """Poll the condition until its value is true, and return that value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        threading.Event().wait(0.02)  # not time.sleep, which some tests replace
    return value
