"""IAM policies of the proxy, of a node and of administrators.

``DescribeInstances`` and ``DescribeSpotInstanceRequests`` take ``"Resource": "*"`` only, so they are
limited by region; see
https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.permissions import Document, Instance, allow, document, unique
from qwenctl.core.claims import TAG

_VERSION = "2012-10-17"

_CREATE_FROM = (
    "image",
    "key-pair",
    "network-interface",
    "security-group",
    "spot-instances-request",
    "subnet",
    "volume",
)
"""The resources that RunInstances uses or creates beside the instance."""

_LOOK = [
    "ec2:DescribeImages",
    "ec2:DescribeInstances",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
]


def proxy_policy(instances: Sequence[Instance]) -> Document:
    """Allow describing, starting and stopping exactly these instances."""
    return document(
        _VERSION,
        allow(
            ["ec2:StartInstances", "ec2:StopInstances", "ec2:DescribeInstanceAttribute"],
            _arns(instances),
            sid="StartAndStop",
        ),
        allow(
            ["ec2:CreateTags"],
            _arns(instances),
            sid="Claim",
            **{"ForAllValues:StringEquals": {"aws:TagKeys": [TAG]}},
        ),
        allow(
            ["ec2:DescribeInstances", "ec2:DescribeSpotInstanceRequests"],
            "*",
            sid="Look",
            StringEquals={"aws:RequestedRegion": unique(one.region for one in instances)},
        ),
    )


def node_policy(instances: Sequence[Instance]) -> Document:
    """Allow a node to stop itself, nothing else.

    Instances that share a role may not stop each other: the condition names the calling instance.
    """
    return document(
        _VERSION,
        *(
            allow(["ec2:StopInstances"], arn, ArnLike={"ec2:SourceInstanceARN": arn})
            for arn in _arns(instances)
        ),
    )


def node_trust(region: str) -> Document:
    """Allow instances to take the node's role."""
    suffix = ".cn" if _partition(region) == "aws-cn" else ""
    service = f"ec2.amazonaws.com{suffix}"
    return document(
        _VERSION,
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": [service]}},
    )


def role_commands(instance: Instance) -> list[str]:  # noqa: ARG001
    """Return no command: a node on EC2 needs no role."""
    return []


def _partition(region: str) -> str:
    """Return the partition in the region's resource names."""
    for prefix in ("cn-", "us-gov-"):
        if region.startswith(prefix):
            return f"aws-{prefix.rstrip('-')}"
    return "aws"


def _arns(instances: Sequence[Instance]) -> list[str]:
    # Without the account: an instance id is unique without it.
    return unique(
        f"arn:{_partition(one.region)}:ec2:{one.region}:*:instance/{one.instance_id}"
        for one in instances
    )


def admin_policy(deployment: str, tables: Sequence[AwsConfig]) -> Document:
    """Allow the calls of `qwenctl provision --apply`, `create` and `release`."""
    regions = unique(table.region for table in tables)
    known = _arns([Instance("", "aws", t.region, t.instance_id) for t in tables if t.instance_id])

    def arns(*kinds: str) -> list[str]:
        return [f"arn:{_partition(r)}:ec2:{r}:*:{kind}/*" for r in regions for kind in kinds]

    created = {"aws:RequestTag/qwenctl:deployment": deployment}
    ours = {"aws:ResourceTag/qwenctl:deployment": deployment}
    tagging = {"ec2:CreateAction": "RunInstances"}
    return document(
        _VERSION,
        allow(["ec2:RunInstances"], arns("instance"), sid="Create", StringEquals=created),
        allow(["ec2:RunInstances"], arns(*_CREATE_FROM), sid="CreateFrom"),
        allow(
            ["ec2:CreateTags"],
            arns("instance", "spot-instances-request", "volume"),
            sid="TagWhatIsCreated",
            StringEquals=tagging,
        ),
        allow(
            ["ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"],
            arns("instance", "spot-instances-request"),
            sid="Release",
            StringEquals=ours,
        ),
        allow(_LOOK, "*", sid="Look", StringEquals={"aws:RequestedRegion": regions}),
        allow(["ec2:AuthorizeSecurityGroupIngress"], arns("security-group"), sid="AddRules"),
        allow(["ec2:DescribeInstanceAttribute"], arns("instance"), sid="LookAtShutdown"),
        *_where_configured(tables, known, regions[0]),
    )


def _where_configured(
    tables: Sequence[AwsConfig], known: Sequence[str], region: str
) -> list[Document]:
    """Return the statements that only some configurations need."""
    statements: list[Document] = []
    if known:
        # It allows changing user data, too. Instances of `create` do not need it.
        statements.append(allow(["ec2:ModifyInstanceAttribute"], known, sid="StopOnShutdown"))
    part = _partition(region)
    profiles = unique(t.template.instance_profile for t in tables if t.template.instance_profile)
    if profiles:
        # The console gives a role and its profile the same name.
        roles = [f"arn:{part}:iam::*:role/{name}" for name in profiles]
        service = {"iam:PassedToService": "ec2.amazonaws.com*"}
        statements.append(allow(["iam:PassRole"], roles, sid="GiveRole", StringLike=service))
    if any(table.template.market == "spot" for table in tables):
        statements.append(
            allow(
                ["iam:CreateServiceLinkedRole"],
                f"arn:{part}:iam::*:role/aws-service-role/spot.amazonaws.com/*",
                sid="FirstSpotInstance",
                StringEquals={"iam:AWSServiceName": "spot.amazonaws.com"},
            )
        )
    return statements
