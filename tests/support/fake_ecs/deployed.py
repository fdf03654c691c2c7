"""Deployments whose GPUs are instances of the fake cloud, with the real agent in them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.deployment import Deployment
from tests.support.fake_ecs.client import INSTANCE
from tests.support.fake_ecs.cloud import FakeInstance
from tests.support.fake_ecs.server import FakeEcs

__all__ = ["key_in_environment", "put_agent", "table_of"]


def key_in_environment(fake: FakeEcs) -> dict[str, str]:
    """The fake's first key, as programs find it."""
    return {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": fake.key.id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": fake.key.secret,
    }


def table_of(fake: FakeEcs, instance_id: str = INSTANCE, **more: Any) -> dict[str, Any]:
    """The table of a GPU that is this instance; ``more``: of the GPU."""
    aliyun = {
        "region": "cn-hangzhou",
        "instance_id": instance_id,
        "endpoint": fake.endpoint,
        "protocol": "http",
        **more.pop("aliyun", {}),
    }
    return {"provider": "aliyun", "aliyun": aliyun, **more}


def put_agent(
    deployment: Deployment, instance: FakeInstance, folder: str = "node", **settings: str
) -> None:
    """Have the instance run the deployment's agent, with a folder of its own below the deployment's."""
    deployment.config.read_node_secret()  # `qwenctl provision` puts it on the instance
    home = deployment.directory / folder
    home.mkdir()
    node = {
        "GPU": "main",
        "PROXY_URLS": json.dumps([deployment.config.url]),
        "NODE_SECRET_FILE": str(deployment.config.state_path / "node.secret"),
        "STATE_DIR": str(home / "state"),
        "LOG_DIR": str(home / "logs"),
        **settings,
    }
    instance.agent = {f"QWENCTL_NODE__{key}": value for key, value in node.items()}
    instance.agent_log = home / "agent.log"
