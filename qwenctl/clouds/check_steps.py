"""What the doctor checks of all clouds share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qwenctl.clouds.base import Context
from qwenctl.errors import ConfigError
from qwenctl.lib.findings import Finding, Stop, fail, ok

__all__ = ["explain_settings", "ok_configured_address"]


@contextmanager
def explain_settings(cloud: str) -> Iterator[None]:
    """End the checks with a finding if the settings are unusable or the SDK is missing.

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
        raise Stop(fail("provider", found, f"Run `pip install 'qwenctl[{cloud}]'`.")) from None


def ok_configured_address(context: Context) -> Finding:
    """The finding of an address that the configuration gives."""
    return ok("address", f"{context.address} (gpu.{context.gpu}.address)")
