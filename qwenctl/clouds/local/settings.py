"""Settings of the local provider: ``[gpu.NAME.local]``."""

from __future__ import annotations

import sys
from typing import Literal

if sys.version_info >= (3, 11):
    pass
else:
    pass
from qwenctl.lib.settings_types import Duration, Table

__all__ = [
    "LocalConfig",
]


class LocalConfig(Table):
    """The local provider: an "instance" that is a process group on this machine."""

    boot_seconds: Duration = 3.0
    """How long the instance takes from start to running."""
    stop_seconds: Duration = 1.0
    """How long it takes from stop to stopped."""
    fail: Literal["", "no_capacity", "boot_hangs", "dies_after", "denied"] = ""
    """A fault to play: no capacity at start, a boot that never ends, an instance that dies."""
    dies_after: Duration = 10.0
    """With ``fail = "dies_after"``: how long after running the instance dies."""
