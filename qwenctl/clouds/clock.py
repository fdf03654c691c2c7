"""Compare this machine's clock with the one of a cloud's API."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from qwenctl.lib.findings import Finding, Stop, fail, ok, warn
from qwenctl.lib.http_probe import PATIENCE, brief_reason

__all__ = [
    "clock_with_cloud",
    "rough_duration",
]

CLOCK_WARN, CLOCK_FAIL = 60.0, 240.0
"""Seconds by which two clocks may differ. EC2 refuses requests at 300, Alibaba Cloud at 900."""


def clock_with_cloud(url: str) -> Iterable[Finding]:
    """Our clock against the date in an answer of the cloud's API, which needs no credentials."""
    host = urlsplit(url).netloc
    try:
        before = time.time()
        with requests.get(url, timeout=PATIENCE, allow_redirects=False, stream=True) as answer:
            date = answer.headers.get("Date", "")
        theirs = parsedate_to_datetime(date).timestamp()
    except requests.RequestException as error:
        raise Stop(
            fail(
                "endpoint",
                f"the API at {host} cannot be reached ({brief_reason(error)})",
                "Check this machine's route, DNS and HTTPS_PROXY, and the region; within a VPC "
                "without a way out, set the VPC endpoint.",
            )
        ) from None
    except (ValueError, TypeError):
        return  # it has no date: that is no fault of ours
    ahead = before - theirs
    if abs(ahead) < CLOCK_WARN:
        yield ok("cloud clock", f"agrees with ours ({host})")
        return
    found = (
        f"this machine's clock is {rough_duration(abs(ahead))} {'fast' if ahead > 0 else 'slow'}"
    )
    fix = "Set it, best by NTP (chrony, systemd-timesyncd): the cloud refuses requests of another time."
    yield (fail if abs(ahead) >= CLOCK_FAIL else warn)("cloud clock", found, fix)


def rough_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
