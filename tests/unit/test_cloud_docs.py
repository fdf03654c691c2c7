"""docs/clouds.md names every check of the doctor and every action of the policies."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest

from qwenctl.admin.permissions import admin_policy, proxy_policy
from qwenctl.clouds.permissions import Instance
from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "clouds.md").read_text(encoding="utf-8")

ADMIN = Config.model_validate(
    {
        "gpu": {
            "a": {
                "provider": "aliyun",
                "aliyun": {"region": "cn-hangzhou", "template": {"ram_role_name": "r"}},
            },
            "b": {
                "provider": "aws",
                "aws": {
                    "region": "us-east-1",
                    "template": {"instance_profile": "p", "market": "spot"},
                },
            },
        }
    }
)
"""Everything that needs a right of its own."""


def test_every_check_is_documented() -> None:
    names: set[str] = set()
    for path in [p for d in ("admin", "clouds") for p in (ROOT / "qwenctl" / d).rglob("*.py")]:
        code = path.read_text(encoding="utf-8")
        names |= set(re.findall(r'\b(?:ok|warn|fail|_refused|refusal)\(\s*"([a-z ]+)"', code))
    assert {"redis", "billing", "agent"} <= names
    for name in names - {"config"} | {"may start", "may stop"}:
        assert f"`{name}`" in PAGE, name


def test_every_action_is_documented() -> None:
    for instance in (
        Instance("a", "aliyun", "cn-hangzhou", "i-bp1a"),
        Instance("b", "aws", "us-east-1", "i-0123456789abcdef0"),
    ):
        admin = admin_policy(ADMIN, instance.cloud)
        for statement in proxy_policy([instance])["Statement"] + admin["Statement"]:
            for action in statement["Action"]:
                assert f"`{action}`" in PAGE, action


def test_the_policy_of_the_aliyun_example_is_the_one_that_is_printed() -> None:
    page = (ROOT / "examples" / "aliyun" / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    instance = Instance("main", "aliyun", "cn-hangzhou", "i-bp1fake0001")
    assert json.loads(block) == proxy_policy([instance])


@pytest.mark.parametrize("cloud", ["aliyun", "aws"])
def test_an_example_works_once_what_is_marked_is_replaced(cloud: str) -> None:
    path = ROOT / "examples" / cloud / "qwenctl.toml"
    config = load_config(str(path), env={})
    host, port = config.check_listen()
    [url] = config.node_urls  # the proxy must listen where nodes look for it
    assert (urlsplit(url).hostname, urlsplit(url).port) == (host, port)
    marked = re.findall(r"^(\w+) = .*# REPLACE", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert marked == ["listen", "node_urls", "password_hash", "region", "instance_id"]
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    for command in ("import", "permissions", "provision", "doctor"):
        assert page.count(f"`qwenctl {command}") + page.count(f"$ qwenctl {command}") >= 2
