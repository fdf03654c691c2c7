"""Checks of the doctor that all clouds share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from qwenctl.clouds.base import Context
from qwenctl.errors import ConfigError
from qwenctl.lib.extras import how_to_install
from qwenctl.lib.findings import Finding, Stop, fail, ok, warn
from qwenctl.lib.http_probe import PATIENCE, brief_reason


@contextmanager
def explain_settings(cloud: str) -> Iterator[None]:
    """End the checks if the settings are unusable or the SDK is missing.

    Raises:
        Stop: with that finding.
    """
    try:
        yield
    except ConfigError as error:
        fix = f"`qwenctl import {cloud} INSTANCE_ID --region REGION` prints the whole section."
        raise Stop(fail("provider", str(error), fix)) from None
    except ModuleNotFoundError as error:
        found = f"the package {error.name} is not installed"
        raise Stop(fail("provider", found, f"Run `{how_to_install(cloud)}`.")) from None


def ok_configured_address(context: Context) -> Finding:
    """Return the finding of an address that the configuration sets."""
    return ok("address", f"{context.address} (gpu.{context.gpu}.address)")


def unproved(verb: str, host: str) -> Finding:
    """Return the finding of a right that a stand-in for a cloud grants without a check."""
    return warn(
        f"may {verb}",
        f"not known: {host} allows every dry run, also of an instance that does not exist",
        "It only stands in for the cloud: run this with the cloud's own endpoint to check the rights.",
    )


CLOCK_WARN, CLOCK_FAIL = 60.0, 240.0
"""Seconds by which two clocks may differ. AWS refuses requests at 300
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_aws-signing.html), Alibaba Cloud at 900."""


def clock_with_cloud(url: str) -> Iterable[Finding]:
    """Compare this machine's clock with the date in an answer of the cloud's API.

    It needs no credentials.
    """
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
        return  # an answer without a date proves nothing
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
