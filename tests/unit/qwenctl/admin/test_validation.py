"""Warnings about where nodes are told to reach the proxy."""

from __future__ import annotations

from typing import Any

import pytest

from qwenctl.admin.validation import node_url_warnings
from qwenctl.config.deployment import Config

CLOUD = {"provider": "aws", "aws": {"instance_id": "i-0123456789abcdef0", "region": "eu-west-1"}}


def warnings(proxy: dict[str, Any], gpu: dict[str, Any]) -> list[str]:
    config = Config.model_validate({"proxy": proxy, "gpu": {"main": gpu}})
    return list(node_url_warnings(config))


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ({"public_url": "https://no-such-name.invalid"}, "so proxy.public_url tells nodes"),
        ({"public_url": "https://no-such-name.invalid"}, "does not resolve here"),
        ({"node_urls": ["http://no-such-name.invalid:8080"]}, "proxy.node_urls tells nodes"),
        ({"node_urls": ["http://10.0.0.5", "http://n.invalid"]}, "n.invalid does not resolve"),
        ({"public_url": f"https://{'a' * 64}.example"}, "does not resolve here"),
        ({"public_url": "http://127.0.0.1:8080"}, "means the node itself"),
        ({"public_url": "http://localhost:8080"}, "means the node itself"),
        ({"public_url": "http://[::1]:8080"}, "means the node itself"),
        ({}, "so proxy.listen tells nodes to reach http://127.0.0.1:8080"),
        ({"listen": "0.0.0.0:8080"}, "means the node itself"),
    ],
)
def test_a_url_that_no_node_can_reach(proxy: dict[str, Any], words: str) -> None:
    found = warnings(proxy, CLOUD)
    assert len(found) == 1
    assert words in found[0]
    assert warnings(proxy, {**CLOUD, "agent": False}) == []
    assert warnings(proxy, {}) == []  # on this machine


@pytest.mark.parametrize(
    "proxy",
    [
        {"public_url": "https://no-such-name.invalid", "node_urls": ["http://10.0.0.5:8080"]},
        {"listen": "10.0.0.5:8080"},
    ],
)
def test_a_url_in_the_nodes_network(proxy: dict[str, Any]) -> None:
    assert warnings(proxy, CLOUD) == []
