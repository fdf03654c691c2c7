"""The id by which a deployment is told from others, whatever their names."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path

from qwenctl.lib.private_file import write_private
from qwenctl.store.store import Store

FILE = "deployment-id.json"


def deployment_id(store: Store, state_path: Path) -> str:
    """Return the id that all replicas share: the store keeps it.

    The state directory keeps a copy, so that a store that has lost its data, or another one, gets
    the same id again, and the deployment its instances.

    Raises:
        StoreUnavailable: Redis cannot be reached.
    """
    file = state_path / FILE
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = {str(key): str(value) for key, value in json.loads(file.read_text()).items()}
    key = store.deployment
    found = store.settle_id(known.get(key) or secrets.token_hex(8))
    if known.get(key) != found:
        with contextlib.suppress(OSError):
            write_private(file, json.dumps({**known, key: found}))
    return found


def cached_id(store: Store, state_path: Path) -> Callable[[], str]:
    """Return a function that finds the id at its first call that reaches the store."""
    return cache(lambda: deployment_id(store, state_path))
