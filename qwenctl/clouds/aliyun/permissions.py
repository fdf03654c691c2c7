"""RAM policies of the proxy, of a node and of administrators.

A ``Describe`` action that lists is checked against ``instance/*`` of the region; see
https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-ram.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from qwenctl.clouds.aliyun.api import arn_of
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.permissions import (
    NODE_ROLES,
    Document,
    Instance,
    allow,
    document,
    node_role_name,
    unique,
)
from qwenctl.clouds.plan import compact


def proxy_policy(instances: Sequence[Instance]) -> Document:
    """Allow describing, starting and stopping exactly these instances."""
    regions = unique(instance.region for instance in instances)
    return document(
        "1",
        # The tag is the claim that keeps other deployments from the instance.
        allow(["ecs:StartInstance", "ecs:StopInstance", "ecs:TagResources"], _arns(instances)),
        allow(
            # The second is for `doctor`: a node without a role cannot end its billing.
            ["ecs:DescribeInstances", "ecs:DescribeInstanceRamRole"],
            [arn_of(region) for region in regions],
        ),
    )


def node_policy(instances: Sequence[Instance]) -> Document:
    """Allow a node to stop itself, nothing else.

    RAM has no condition that names the calling instance: give each a role of its own.
    """
    return document("1", allow(["ecs:StopInstance"], _arns(instances)))


def node_trust(region: str) -> Document:  # noqa: ARG001
    """Allow instances to take the node's role."""
    return document(
        "1",
        {
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Principal": {"Service": ["ecs.aliyuncs.com"]},
        },
    )


def role_commands(instance: Instance) -> list[str]:
    """Return the commands of Alibaba Cloud's CLI that create the node's role."""
    name = node_role_name(instance)

    def command(product: str, action: str, **parameters: str) -> str:
        flags = [word for key, value in parameters.items() for word in (f"--{key}", value)]
        return shlex.join(["aliyun", product, action, *flags])

    trust, policy = compact(node_trust(instance.region)), compact(node_policy([instance]))
    return [
        command("ram", "CreateRole", RoleName=name, AssumeRolePolicyDocument=trust),
        command("ram", "CreatePolicy", PolicyName=name, PolicyDocument=policy),
        command("ram", "AttachPolicyToRole", PolicyType="Custom", PolicyName=name, RoleName=name),
        command(
            "ecs",
            "AttachInstanceRamRole",
            RegionId=instance.region,
            RamRoleName=name,
            InstanceIds=json.dumps([instance.instance_id]),
        ),
    ]


def _arns(instances: Sequence[Instance]) -> list[str]:
    return unique(arn_of(one.region, one.instance_id) for one in instances)


def admin_policy(deployment: str, tables: Sequence[AliyunConfig]) -> Document:
    """Allow the calls of `qwenctl provision --apply`, `create` and `release`."""
    regions = unique(table.region for table in tables)
    instances = [arn_of(region) for region in regions]
    groups = [f"acs:ecs:{region}:*:securitygroup/*" for region in regions]
    own_roles = f"acs:ram:*:*:role/{NODE_ROLES}*"
    own_policies = f"acs:ram:*:*:policy/{NODE_ROLES}*"
    # Resource names have role names in small letters.
    templates = (table.template.ram_role_name.lower() for table in tables)
    roles = unique([own_roles, *(f"acs:ram:*:*:role/{role}" for role in templates if role)])
    return document(
        "1",
        # RunInstances is also checked against image, security group, key pair and VSwitch.
        allow(
            ["ecs:RunInstances"],
            [
                resource
                for region in regions
                for resource in (f"acs:ecs:{region}:*:*", f"acs:vpc:{region}:*:vswitch/*")
            ],
        ),
        allow(
            ["ecs:DeleteInstance"],
            instances,
            StringEquals={"acs:ResourceTag/qwenctl:deployment": [deployment]},
        ),
        allow(["ecs:DescribeInstances", "ecs:DescribeInstanceRamRole"], instances),
        allow(["ecs:DescribePrice"], "*"),
        allow(["ecs:DescribeSecurityGroupAttribute", "ecs:AuthorizeSecurityGroup"], groups),
        allow(["ecs:AttachInstanceRamRole"], [*instances, *roles]),
        allow(["ram:CreateRole", "ram:GetRole"], [own_roles]),
        allow(["ram:CreatePolicy", "ram:CreatePolicyVersion", "ram:GetPolicy"], [own_policies]),
        allow(["ram:ListPoliciesForRole"], roles),
        allow(["ram:AttachPolicyToRole"], [*roles, own_policies]),
        allow(["ram:PassRole"], roles, StringEquals={"acs:Service": "ecs.aliyuncs.com"}),
    )
