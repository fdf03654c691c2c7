"""Settings of the local provider: ``[gpu.NAME.local]``."""

from __future__ import annotations

from typing import ClassVar, Literal

from qwenctl.clouds.base import ProviderSettings
from qwenctl.core.words import OffBill
from qwenctl.lib.settings_types import Duration


class LocalConfig(ProviderSettings):
    """The local provider: an "instance" that is a process group on this machine."""

    on_this_machine: ClassVar[bool] = True
    sample: ClassVar[str] = """\
# The local provider: an "instance" that is a group of processes on this machine.
[gpu.{name}.local]
boot_seconds = 3
"""

    boot_seconds: Duration = 3.0
    """How long the instance takes from start to running."""
    stop_seconds: Duration = 1.0
    """How long it takes from stop to stopped."""
    fail: Literal["", "no_capacity", "boot_hangs", "dies_after", "denied"] = ""
    """A simulated fault: no capacity at start, a boot that never ends, an instance that dies."""
    dies_after: Duration = 10.0
    """With ``fail = "dies_after"``: how long after running the instance dies."""

    @property
    def off_bill(self) -> OffBill:
        return "here"


Settings = LocalConfig
