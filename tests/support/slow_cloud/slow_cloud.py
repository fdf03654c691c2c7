"""A provider for tests: the local one, a network away.

Looking at the instance takes `LOOK_SECONDS`, which opens a gap between a transition and its call
that is wide enough to freeze a process in. Installed by putting this directory on the path.
"""

from __future__ import annotations

import time

from qwenctl.config import Config, GpuConfig
from qwenctl.providers.base import Observation
from qwenctl.providers.local import LocalProvider

LOOK_SECONDS = 0.4


class SlowCloud(LocalProvider):
    observe_interval = 0.2

    def describe(self) -> Observation:
        time.sleep(LOOK_SECONDS)
        return super().describe()

    def _start(self) -> str:
        # The cloud itself knows the state of its instances without delay.
        self.describe = super().describe  # type: ignore[method-assign]
        try:
            return super()._start()
        finally:
            del self.describe


def make(name: str, gpu: GpuConfig, config: Config) -> LocalProvider:
    return SlowCloud.from_config(name, gpu, config)
