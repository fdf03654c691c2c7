"""The record of what the parts of one proxy process share."""

from __future__ import annotations

from dataclasses import dataclass

from qwenctl.config.deployment import Config
from qwenctl.store.store import Store

from ..auth.authenticator import Authenticators
from ..http.metrics import Metrics
from ..http.request import Networks
from .admit import Admit
from .snapshot_cache import SnapshotCache
from .usage import UsageTracker


@dataclass(frozen=True)
class Services:
    """What data plane, control plane and forward auth work with."""

    config: Config
    store: Store
    owner: str
    """Who this process is, in leases and events."""
    trusted: Networks
    """Peers whose X-Forwarded-* headers count."""
    snapshots: SnapshotCache
    usage: UsageTracker
    authenticators: Authenticators
    metrics: Metrics
    admit: Admit
