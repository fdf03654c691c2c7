"""IAM policies of the proxy, of a node and of administrators.

``DescribeInstances`` and ``DescribeSpotInstanceRequests`` take ``"Resource": "*"`` only, so they are
limited by region; see
https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.permissions import Document, Instance, document, unique

__all__ = ["admin_policy", "node_policy", "node_trust", "proxy_policy", "role_commands"]


def proxy_policy(instances: Sequence[Instance]) -> Document:
    """Allow to look at, start and stop exactly these instances."""
    return document(
        "2012-10-17",
        {
            "Sid": "StartAndStop",
            "Effect": "Allow",
            "Action": ["ec2:StartInstances", "ec2:StopInstances", "ec2:DescribeInstanceAttribute"],
            "Resource": _arns(instances),
        },
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": ["ec2:DescribeInstances", "ec2:DescribeSpotInstanceRequests"],
            "Resource": "*",
            "Condition": {
                "StringEquals": {"aws:RequestedRegion": unique(one.region for one in instances)}
            },
        },
    )


def node_policy(instances: Sequence[Instance]) -> Document:
    """Allow a node to stop itself, nothing else.

    Instances that share a role may not stop each other: the condition names the one that asks.
    """
    return document(
        "2012-10-17",
        *(
            {
                "Effect": "Allow",
                "Action": ["ec2:StopInstances"],
                "Resource": arn,
                "Condition": {"ArnLike": {"ec2:SourceInstanceARN": arn}},
            }
            for arn in _arns(instances)
        ),
    )


def node_trust(region: str) -> Document:
    """Allow instances to take the node's role."""
    suffix = ".cn" if _partition(region) == "aws-cn" else ""
    service = f"ec2.amazonaws.com{suffix}"
    return document(
        "2012-10-17",
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": [service]}},
    )


def role_commands(instance: Instance) -> list[str]:  # noqa: ARG001
    """Return nothing: a node on EC2 needs no role."""
    return []


def _partition(region: str) -> str:
    """Return the first part of resource names in that region."""
    for prefix in ("cn-", "us-gov-"):
        if region.startswith(prefix):
            return f"aws-{prefix.rstrip('-')}"
    return "aws"


def _arns(instances: Sequence[Instance]) -> list[str]:
    # The account is left open: an instance id is unique without it.
    return unique(
        f"arn:{_partition(one.region)}:ec2:{one.region}:*:instance/{one.instance_id}"
        for one in instances
    )


def admin_policy(deployment: str, tables: Sequence[AwsConfig]) -> Document:
    """Allow what `qwenctl provision --apply`, `create` and `release` need."""
    regions = unique(table.region for table in tables)
    known = _arns([Instance("", "aws", t.region, t.instance_id) for t in tables if t.instance_id])

    def arns(*kinds: str) -> list[str]:
        return [f"arn:{_partition(r)}:ec2:{r}:*:{kind}/*" for r in regions for kind in kinds]

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
    return document("2012-10-17", *statements, *_where_configured(tables, known, regions[0]))


def _where_configured(
    tables: Sequence[AwsConfig], known: Sequence[str], region: str
) -> list[Document]:
    """Return the statements that only some configurations need."""
    statements: list[Document] = []
    if known:
        # It can change an instance's user data, too. What `create` makes does not need it.
        statements.append(
            {
                "Sid": "StopOnShutdown",
                "Effect": "Allow",
                "Action": ["ec2:ModifyInstanceAttribute"],
                "Resource": list(known),
            }
        )
    part = _partition(region)
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
    return statements
