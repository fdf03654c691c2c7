"""IAM policy for administrators who create, change and release instances."""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.permissions import Document, Instance, document, partition, unique

__all__ = [
    "aws_admin_policy",
]


def aws_admin_policy(deployment: str, tables: Sequence[AwsConfig]) -> Document:
    regions = unique(table.region for table in tables)
    known = unique(
        Instance("", "aws", table.region, table.instance_id).arn
        for table in tables
        if table.instance_id
    )

    def arns(*kinds: str) -> list[str]:
        return [f"arn:{partition(r)}:ec2:{r}:*:{kind}/*" for r in regions for kind in kinds]

    statements: list[Document] = [
        {
            "Sid": "Create",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances"],
            "Resource": arns("instance"),
            "Condition": {"StringEquals": {"aws:RequestTag/qwenctl:deployment": deployment}},
        },
        {
            "Sid": "CreateFrom",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances"],
            "Resource": arns(
                "image",
                "key-pair",
                "network-interface",
                "security-group",
                "spot-instances-request",
                "subnet",
                "volume",
            ),
        },
        {
            "Sid": "TagWhatIsCreated",
            "Effect": "Allow",
            "Action": ["ec2:CreateTags"],
            "Resource": arns("instance", "spot-instances-request", "volume"),
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {
            "Sid": "Release",
            "Effect": "Allow",
            "Action": ["ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"],
            "Resource": arns("instance", "spot-instances-request"),
            "Condition": {"StringEquals": {"aws:ResourceTag/qwenctl:deployment": deployment}},
        },
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": [
                "ec2:DescribeImages",
                "ec2:DescribeInstances",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeSpotPriceHistory",
                "ec2:DescribeSubnets",
            ],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": regions}},
        },
    ]
    statements += [
        {
            "Sid": "AddRules",
            "Effect": "Allow",
            "Action": ["ec2:AuthorizeSecurityGroupIngress"],
            "Resource": arns("security-group"),
        },
        {
            "Sid": "LookAtShutdown",
            "Effect": "Allow",
            "Action": ["ec2:DescribeInstanceAttribute"],
            "Resource": arns("instance"),
        },
    ]
    if known:
        # It can change an instance's user data, too. What `create` makes does not need it.
        statements.append(
            {
                "Sid": "StopOnShutdown",
                "Effect": "Allow",
                "Action": ["ec2:ModifyInstanceAttribute"],
                "Resource": known,
            }
        )
    part = partition(regions[0])
    profiles = unique(t.template.instance_profile for t in tables if t.template.instance_profile)
    if profiles:
        statements.append(
            {
                "Sid": "GiveRole",
                "Effect": "Allow",
                "Action": ["iam:PassRole"],
                # The console gives a role and its profile the same name.
                "Resource": [f"arn:{part}:iam::*:role/{name}" for name in profiles],
                "Condition": {"StringLike": {"iam:PassedToService": "ec2.amazonaws.com*"}},
            }
        )
    if any(table.template.market == "spot" for table in tables):
        statements.append(
            {
                "Sid": "FirstSpotInstance",
                "Effect": "Allow",
                "Action": ["iam:CreateServiceLinkedRole"],
                "Resource": f"arn:{part}:iam::*:role/aws-service-role/spot.amazonaws.com/*",
                "Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
            }
        )
    return document("2012-10-17", *statements)
