"""The id by which a deployment is told from others, whatever their names."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from qwenctl.errors import StoreUnavailable
from qwenctl.lib.private_file import write_private
from qwenctl.store.store import Store

FILE = "deployment-id.json"


AGAIN_SECONDS = 60.0
"""How often a process gives the id to a store that may have lost it."""


def deployment_id(store: Store, state_path: Path, own: str = "") -> str:
    """Return the id that all replicas share: the store keeps it.

    The state directory keeps a copy, and so does each process (``own``), so that a store that has
    lost its data, or another one, gets the same id again, and the deployment its instances.

    Raises:
        StoreUnavailable: Redis cannot be reached.
    """
    file = state_path / FILE
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = {str(key): str(value) for key, value in json.loads(file.read_text()).items()}
    key = store.deployment
    found = store.settle_id(own or known.get(key) or secrets.token_hex(8))
    if known.get(key) != found:
        with contextlib.suppress(OSError):
            write_private(file, json.dumps({**known, key: found}))
    return found


def cached_id(
    store: Store, state_path: Path, clock: Callable[[], float] = time.monotonic
) -> Callable[[], str]:
    """Return a function that finds the id, and asks the store for it once a minute.

    It raises `StoreUnavailable` until its first call that reaches the store.
    """
    own, asked_at = "", float("-inf")

    def find() -> str:
        nonlocal own, asked_at
        if not own or clock() - asked_at >= AGAIN_SECONDS:
            asked_at = clock()
            with contextlib.suppress(StoreUnavailable) if own else contextlib.nullcontext():
                own = deployment_id(store, state_path, own)
        return own

    return find
