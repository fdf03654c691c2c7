"""The policies name exactly the configured instances, and only actions that the clouds have."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_ram20150501 import models as ram_models

from qwenctl.admin.permissions import (
    admin_policy,
    configured,
    node_policy,
    node_trust,
    proxy_policy,
)
from qwenctl.clouds.permissions import Instance, node_role_name
from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.errors import ConfigError

TOML = """
[gpu.small]
provider = "aliyun"
aliyun = { region = "cn-hangzhou", instance_id = "i-bp1small" }
[gpu.large]
provider = "aliyun"
aliyun = { region = "ap-southeast-1", instance_id = "i-t4nlarge" }
[gpu.here]
[gpu.east]
provider = "aws"
aws = { region = "us-east-1", instance_id = "i-0123456789abcdef0" }
[gpu.north]
provider = "aws"
aws = { region = "cn-north-1", instance_id = "i-0fedcba987654321f" }
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "qwenctl.toml"
    path.write_text(TOML)
    return load_config(str(path), env={})


def actions(document: dict[str, Any]) -> set[str]:
    return {action for statement in document["Statement"] for action in statement["Action"]}


def resources(document: dict[str, Any], action: str) -> list[str]:
    [found] = [s["Resource"] for s in document["Statement"] if action in s["Action"]]
    return [found] if isinstance(found, str) else found


def test_start_and_stop_are_for_the_configured_instances_only(config: Config) -> None:
    aliyun = proxy_policy(configured(config, "aliyun"))
    for action in ("ecs:StartInstance", "ecs:StopInstance", "ecs:TagResources"):
        assert resources(aliyun, action) == [
            "acs:ecs:cn-hangzhou:*:instance/i-bp1small",
            "acs:ecs:ap-southeast-1:*:instance/i-t4nlarge",
        ]
    aws = proxy_policy(configured(config, "aws"))
    for action in ("ec2:StartInstances", "ec2:StopInstances", "ec2:CreateTags"):
        assert resources(aws, action) == [
            "arn:aws:ec2:us-east-1:*:instance/i-0123456789abcdef0",
            "arn:aws-cn:ec2:cn-north-1:*:instance/i-0fedcba987654321f",
        ]


def test_one_gpu_alone(config: Config) -> None:
    policy = proxy_policy(configured(config, "aliyun", "large"))
    assert resources(policy, "ecs:StopInstance") == ["acs:ecs:ap-southeast-1:*:instance/i-t4nlarge"]
    assert "i-bp1small" not in str(policy)
    assert "cn-hangzhou" not in str(policy)


def test_looking_is_limited_to_the_regions(config: Config) -> None:
    aws = proxy_policy(configured(config, "aws"))
    [look] = [s for s in aws["Statement"] if "ec2:DescribeInstances" in s["Action"]]
    assert look["Resource"] == "*"
    assert look["Condition"]["StringEquals"]["aws:RequestedRegion"] == ["us-east-1", "cn-north-1"]
    aliyun = proxy_policy(configured(config, "aliyun", "small"))
    assert resources(aliyun, "ecs:DescribeInstances") == ["acs:ecs:cn-hangzhou:*:instance/*"]


def test_a_node_may_only_stop_itself(config: Config) -> None:
    aliyun = node_policy(configured(config, "aliyun", "small"))
    assert actions(aliyun) == {"ecs:StopInstance"}
    assert resources(aliyun, "ecs:StopInstance") == ["acs:ecs:cn-hangzhou:*:instance/i-bp1small"]
    aws = node_policy(configured(config, "aws"))
    assert actions(aws) == {"ec2:StopInstances"}
    for statement in aws["Statement"]:
        assert statement["Condition"] == {
            "ArnLike": {"ec2:SourceInstanceARN": statement["Resource"]}
        }


def test_every_aws_action_exists(config: Config) -> None:
    from botocore.session import Session

    known = set(Session().get_service_model("ec2").operation_names)
    instances = configured(config, "aws")
    admin = admin_policy(config, "aws")
    for policy in (proxy_policy(instances), node_policy(instances), admin):
        assert policy["Version"] == "2012-10-17"
        for action in actions(policy):
            service, _, name = action.partition(":")
            assert (service, name in known) == ("ec2", True), action


def test_every_aliyun_action_exists(config: Config) -> None:
    instances = configured(config, "aliyun")
    admin = admin_policy(config, "aliyun")
    for policy in (proxy_policy(instances), node_policy(instances), admin):
        assert policy["Version"] == "1"
        for action in actions(policy):
            service, _, name = action.partition(":")
            if action == "ram:PassRole":  # a right, and no call
                continue
            if service == "ram":
                assert hasattr(ram_models, f"{name}Request"), action
                continue
            assert service == "ecs"
            module = import_module(f"aliyunsdkecs.request.v20140526.{name}Request")
            assert getattr(module, f"{name}Request")().get_action_name() == name


@pytest.mark.parametrize(
    ("region", "service"),
    [("us-east-1", "ec2.amazonaws.com"), ("cn-north-1", "ec2.amazonaws.com.cn")],
)
def test_instances_may_take_the_role(region: str, service: str) -> None:
    assert node_trust("aws", region)["Statement"][0]["Principal"]["Service"] == [service]


def test_gpus_elsewhere_are_refused_with_the_reason(config: Config) -> None:
    with pytest.raises(ConfigError, match=r'gpu\.here has provider = "local"'):
        configured(config, "aws", "here")
    with pytest.raises(ConfigError, match="no GPU has provider"):
        configured(config.model_copy(update={"gpu": {}}), "aws")


def test_a_table_without_an_instance_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text('[gpu.main]\nprovider = "aws"\naws = { region = "us-east-1" }\n')
    with pytest.raises(ConfigError, match=r"gpu\.main\.aws: instance_id missing; .*import aws"):
        configured(load_config(str(path), env={}), "aws")


def test_an_administrator_deletes_only_what_carries_the_tag(config: Config) -> None:
    aws = admin_policy(config, "aws")
    for action in ("ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"):
        [statement] = [s for s in aws["Statement"] if action in s["Action"]]
        assert statement["Condition"]["StringEquals"] == {
            "aws:ResourceTag/qwenctl:deployment": "default"
        }
    assert "arn:aws-cn:ec2:cn-north-1:*:instance/*" in resources(aws, "ec2:TerminateInstances")
    aliyun = admin_policy(config, "aliyun", "large")
    [statement] = [s for s in aliyun["Statement"] if "ecs:DeleteInstance" in s["Action"]]
    assert statement["Condition"]["StringEquals"] == {
        "acs:ResourceTag/qwenctl:deployment": ["default"]
    }
    assert statement["Resource"] == ["acs:ecs:ap-southeast-1:*:instance/*"]


def test_an_administrator_gives_only_the_roles_of_the_templates(tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        '[gpu.a]\nprovider = "aws"\n[gpu.a.aws]\nregion = "us-east-1"\n'
        '[gpu.a.aws.template]\ninstance_profile = "node"\nmarket = "spot"\n'
        '[gpu.b]\nprovider = "aliyun"\n[gpu.b.aliyun]\nregion = "cn-hangzhou"\n'
        '[gpu.b.aliyun.template]\nram_role_name = "Node"\n'
    )
    config = load_config(str(path), env={})
    aws = admin_policy(config, "aws")
    assert resources(aws, "iam:PassRole") == ["arn:aws:iam::*:role/node"]
    assert "iam:CreateServiceLinkedRole" in actions(aws)
    aliyun = admin_policy(config, "aliyun")
    roles = ["acs:ram:*:*:role/qwenctl-node-*", "acs:ram:*:*:role/node"]
    for action in ("ram:PassRole", "ram:ListPoliciesForRole"):
        assert resources(aliyun, action) == roles
    assert resources(aliyun, "ecs:AttachInstanceRamRole")[1:] == roles
    [given] = [s for s in aliyun["Statement"] if "ram:PassRole" in s["Action"]]
    assert given["Condition"] == {"StringEquals": {"acs:Service": "ecs.aliyuncs.com"}}
    with pytest.raises(ConfigError, match="no such GPU"):
        admin_policy(config, "aws", "b")


def test_an_administrator_makes_only_roles_and_policies_of_nodes(config: Config) -> None:
    aliyun = admin_policy(config, "aliyun", "large")
    role, policy = "acs:ram:*:*:role/qwenctl-node-*", "acs:ram:*:*:policy/qwenctl-node-*"
    wanted = {
        "ram:CreateRole": [role],
        "ram:GetRole": [role],
        "ram:ListPoliciesForRole": [role],
        "ram:PassRole": [role],
        "ram:CreatePolicy": [policy],
        "ram:CreatePolicyVersion": [policy],
        "ram:GetPolicy": [policy],
        "ram:AttachPolicyToRole": [role, policy],
        "ecs:AttachInstanceRamRole": ["acs:ecs:ap-southeast-1:*:instance/*", role],
        "ecs:AuthorizeSecurityGroup": ["acs:ecs:ap-southeast-1:*:securitygroup/*"],
    }
    for action, names in wanted.items():
        assert resources(aliyun, action) == names
    assert {action for action in actions(aliyun) if action.startswith("ram:")} <= wanted.keys()


def test_an_administrator_changes_only_the_configured_instances(tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        '[gpu.a]\nprovider = "aws"\naws = { region = "us-east-1", instance_id = "i-0123456789abcdef0" }\n'
        '[[gpu.a.fallback]]\nname = "b"\nregion = "us-west-2"\ninstance_id = "i-0fedcba987654321f"\n'
    )
    aws = admin_policy(load_config(str(path), env={}), "aws")
    assert resources(aws, "ec2:ModifyInstanceAttribute") == [
        "arn:aws:ec2:us-east-1:*:instance/i-0123456789abcdef0",
        "arn:aws:ec2:us-west-2:*:instance/i-0fedcba987654321f",
    ]
    assert "arn:aws:ec2:us-west-2:*:security-group/*" in resources(
        aws, "ec2:AuthorizeSecurityGroupIngress"
    )
    path.write_text('[gpu.a]\nprovider = "aws"\naws = { region = "us-east-1" }\n')
    fresh = admin_policy(load_config(str(path), env={}), "aws")
    assert "ec2:ModifyInstanceAttribute" not in actions(fresh)


def test_the_name_of_a_nodes_role_fits_ram() -> None:
    name = node_role_name(Instance("main", "aliyun", "cn-hangzhou", "i-bp67acfmxazb4ph0sx7k"))
    assert re.fullmatch(r"[A-Za-z0-9-]{1,64}", name)
    assert name == "qwenctl-node-i-bp67acfmxazb4ph0sx7k"
