"""Call back at each change of a GPU."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import redis

log = logging.getLogger("qwenctl.store")

RECONNECT = 1.0
"""Shortest time between two reconnects that others ask for, in seconds."""


class Watcher:
    """A thread that passes change messages on until it is stopped."""

    def __init__(
        self,
        client: redis.Redis,
        channels: Mapping[str, str],
        on_change: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._channels = dict(channels)
        self._on_change = on_change
        self._stopped = threading.Event()
        self._reconnect = threading.Event()
        self._end = f"qwenctl:watcher:{secrets.token_hex(8)}"
        """Our own channel; a message on it ends the wait."""
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # without the store the thread ends anyway
            self._client.publish(self._end, "end")
        self._thread.join(timeout=3)

    def reconnect(self) -> None:
        """Subscribe anew, since the present connection may lead to a demoted master."""
        self._reconnect.set()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            try:
                pubsub: Any = cast(Any, self._client).pubsub()
                with contextlib.closing(pubsub) as sub:
                    self._reconnect.clear()
                    since = time.monotonic()
                    sub.subscribe(self._end, *self._channels)
                    pause = 0.05
                    while not self._stopped.is_set():
                        if self._reconnect.is_set() and time.monotonic() - since > RECONNECT:
                            break
                        message = sub.get_message(timeout=1.0)
                        gpu = self._channels.get(message["channel"]) if message else None
                        if gpu is not None:
                            # redis-py may have connected anew, and lost news by that.
                            begins = message["type"] == "subscribe"
                            self._on_change(gpu, "resync" if begins else message["data"])
            except Exception as error:  # any error: without this thread nothing is woken
                log.debug("waiting for changes was interrupted: %s", error)
                self._stopped.wait(pause)
                pause = min(2.0, pause * 2)
