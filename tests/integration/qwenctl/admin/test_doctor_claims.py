"""What `qwenctl doctor` says of the tag by which a deployment claims its instance."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qwenctl.admin.doctor import Deployment
from qwenctl.clouds.base import Observation
from qwenctl.config.deployment import Config
from qwenctl.core.claims import Claim
from qwenctl.core.phase import Observed
from qwenctl.store.deployment_id import deployment_id
from qwenctl.store.store import Store


def said(store: Store, state: Path, age: float | None, *, led: bool = True) -> dict[str, str]:
    """Return level and text of the check, for a claim of ours that was renewed so long ago."""
    table = {
        "provider": "aws",
        "aws": {"region": "eu-west-1", "instance_id": "i-0aaaaaaaaaaaaaaa0"},
    }
    config = Config.model_validate({"state_dir": str(state), "gpu": {"main": table}})
    if led:
        assert store.acquire("main", "proxy", 30.0)
    deployment = Deployment(config, ["main"])
    deployment._store = store
    seen = time.time() - (age or 0.0)
    own = Claim(deployment_id(store, config.state_path), "demo/main", seen, seen).encode()
    observation = Observation(
        Observed.RUNNING, "i-0aaaaaaaaaaaaaaa0", claim="" if age is None else own
    )
    return {finding.level: finding.found for finding in deployment.claim("main", observation)}


@pytest.mark.parametrize("age", [None, 3 * 3600.0])
def test_a_proxy_that_may_not_tag_is_told(store: Store, tmp_path: Path, age: float | None) -> None:
    found = said(store, tmp_path, age)
    assert "has not tagged it (qwenctl:claim)" in found["warn"]


def test_a_claim_of_ours_is_well(store: Store, tmp_path: Path) -> None:
    assert list(said(store, tmp_path, 60.0)) == ["ok"]


def test_without_a_proxy_nobody_has_tried_to_tag(store: Store, tmp_path: Path) -> None:
    assert said(store, tmp_path, None, led=False) == {}
