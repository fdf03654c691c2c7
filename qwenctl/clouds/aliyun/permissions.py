"""RAM policy for administrators who create, change and release instances."""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.permissions import NODE_ROLES, Document, document, unique

__all__ = [
    "aliyun_admin_policy",
]


def aliyun_admin_policy(deployment: str, tables: Sequence[AliyunConfig]) -> Document:
    regions = unique(table.region for table in tables)
    instances = [f"acs:ecs:{region}:*:instance/*" for region in regions]
    groups = [f"acs:ecs:{region}:*:securitygroup/*" for region in regions]
    own_roles = f"acs:ram:*:*:role/{NODE_ROLES}*"
    own_policies = f"acs:ram:*:*:policy/{NODE_ROLES}*"
    # A role's name is in small letters in its resource name.
    templates = (table.template.ram_role_name.lower() for table in tables)
    roles = unique([own_roles, *(f"acs:ram:*:*:role/{role}" for role in templates if role)])
    return document(
        "1",
        {
            "Effect": "Allow",
            "Action": ["ecs:RunInstances"],
            # Also checked against image, security group, key pair and VSwitch.
            "Resource": [
                resource
                for region in regions
                for resource in (f"acs:ecs:{region}:*:*", f"acs:vpc:{region}:*:vswitch/*")
            ],
        },
        {
            "Effect": "Allow",
            "Action": ["ecs:DeleteInstance"],
            "Resource": instances,
            "Condition": {"StringEquals": {"acs:ResourceTag/qwenctl:deployment": [deployment]}},
        },
        {
            "Effect": "Allow",
            "Action": ["ecs:DescribeInstances", "ecs:DescribeInstanceRamRole"],
            "Resource": instances,
        },
        {"Effect": "Allow", "Action": ["ecs:DescribePrice"], "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["ecs:DescribeSecurityGroupAttribute", "ecs:AuthorizeSecurityGroup"],
            "Resource": groups,
        },
        {
            "Effect": "Allow",
            "Action": ["ecs:AttachInstanceRamRole"],
            "Resource": [*instances, *roles],
        },
        {
            "Effect": "Allow",
            "Action": ["ram:CreateRole", "ram:GetRole"],
            "Resource": [own_roles],
        },
        {
            "Effect": "Allow",
            "Action": ["ram:CreatePolicy", "ram:CreatePolicyVersion", "ram:GetPolicy"],
            "Resource": [own_policies],
        },
        {
            "Effect": "Allow",
            "Action": ["ram:ListPoliciesForRole"],
            "Resource": roles,
        },
        {
            "Effect": "Allow",
            "Action": ["ram:AttachPolicyToRole"],
            "Resource": [*roles, own_policies],
        },
        {
            "Effect": "Allow",
            "Action": ["ram:PassRole"],
            "Resource": roles,
            "Condition": {"StringEquals": {"acs:Service": "ecs.aliyuncs.com"}},
        },
    )
