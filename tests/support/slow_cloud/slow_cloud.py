"""A provider for tests: the local one, with a controller that is slow to call it.

The controller asks for `call_timeout` between its decision to call and its last check that it still
may. Here that takes a while: a gap wide enough to freeze a process in. Installed by putting this
directory on the path.
"""

from __future__ import annotations

import time

from qwenctl.clouds.base import Context
from qwenctl.clouds.local.provider import LocalProvider
from qwenctl.clouds.local.provider import make as make_local
from qwenctl.clouds.local.settings import LocalConfig as Settings

__all__ = ["Settings", "make"]

GAP_SECONDS = 1.0


class SlowCloud(LocalProvider):
    @property
    def call_timeout(self) -> float:  # type: ignore[override]
        time.sleep(GAP_SECONDS)
        return LocalProvider.call_timeout


def make(settings: Settings, context: Context) -> LocalProvider:
    return make_local(settings, context, SlowCloud)
