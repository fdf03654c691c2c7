"""The least that the proxy, a node and an administrator must be allowed to do in the cloud, as
policy documents.

Pure: it makes JSON for an administrator to attach; nothing is read from or written to a cloud.

Which actions can be limited to single instances is the cloud's choice. EC2's start, stop and
``DescribeInstanceAttribute`` can; the other two ``Describe`` actions take ``"Resource": "*"`` only,
so they are limited by region. On Alibaba Cloud a ``Describe`` that lists is checked against
``instance/*`` of the region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenctl.config import AliyunConfig, AwsConfig, Config
from qwenctl.errors import ConfigError

__all__ = [
    "CLOUDS",
    "Cloud",
    "Instance",
    "admin_policy",
    "configured",
    "node_policy",
    "node_role_name",
    "node_trust",
    "proxy_policy",
]

Cloud = Literal["aliyun", "aws"]
CLOUDS: tuple[Cloud, ...] = ("aliyun", "aws")

Document = dict[str, Any]


@dataclass(frozen=True)
class Instance:
    """One instance that the configuration names."""

    gpu: str
    cloud: Cloud
    region: str
    instance_id: str

    @property
    def arn(self) -> str:
        """Its resource name. The account is left open: an instance id is unique without it."""
        if self.cloud == "aliyun":
            return f"acs:ecs:{self.region}:*:instance/{self.instance_id}"
        return f"arn:{partition(self.region)}:ec2:{self.region}:*:instance/{self.instance_id}"


def configured(config: Config, cloud: Cloud, gpu: str | None = None) -> list[Instance]:
    """The configured instances in that cloud, or only those of one GPU.

    Raises:
        ConfigError: there is none, or its table lacks the region or the instance id.
    """
    names = [config.gpu_name(gpu)] if gpu is not None else list(config.gpu)
    found = []
    for name in names:
        for _, table in config.gpu[name].candidates():
            if table.provider != cloud:
                continue
            place = table.aliyun if cloud == "aliyun" else table.aws
            if missing := [key for key in ("region", "instance_id") if not getattr(place, key)]:
                raise ConfigError(
                    f"gpu.{name}.{cloud}: {' and '.join(missing)} missing; "
                    f"`qwenctl import {cloud} INSTANCE_ID --region REGION` prints the whole section"
                )
            found.append(Instance(name, cloud, place.region, place.instance_id))
    if not found:
        if gpu is None:
            raise ConfigError(f'no GPU has provider = "{cloud}"')
        raise ConfigError(f'gpu.{names[0]} has provider = "{config.gpu[names[0]].provider}"')
    return found


def proxy_policy(instances: Sequence[Instance]) -> Document:
    """What the proxy needs: look at, start and stop exactly these instances of one cloud."""
    arns = _unique(instance.arn for instance in instances)
    regions = _unique(instance.region for instance in instances)
    if instances[0].cloud == "aliyun":
        return _document(
            "1",
            {
                "Effect": "Allow",
                "Action": ["ecs:StartInstance", "ecs:StopInstance"],
                "Resource": arns,
            },
            {
                "Effect": "Allow",
                # The second is for `doctor`: without a role the node cannot end its billing.
                "Action": ["ecs:DescribeInstances", "ecs:DescribeInstanceRamRole"],
                "Resource": [f"acs:ecs:{region}:*:instance/*" for region in regions],
            },
        )
    return _document(
        "2012-10-17",
        {
            "Sid": "StartAndStop",
            "Effect": "Allow",
            "Action": ["ec2:StartInstances", "ec2:StopInstances", "ec2:DescribeInstanceAttribute"],
            "Resource": arns,
        },
        {
            "Sid": "Look",
            "Effect": "Allow",
            "Action": ["ec2:DescribeInstances", "ec2:DescribeSpotInstanceRequests"],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": regions}},
        },
    )


def node_policy(instances: Sequence[Instance]) -> Document:
    """What a node's instance role needs for the dead-man's switch: to stop itself, nothing else.

    Several instances that share one role may not stop each other on EC2, whose condition names the
    instance that asks. Alibaba Cloud has no such condition: give each instance a role of its own.
    """
    if instances[0].cloud == "aliyun":
        return _document(
            "1",
            {
                "Effect": "Allow",
                "Action": ["ecs:StopInstance"],
                "Resource": _unique(instance.arn for instance in instances),
            },
        )
    return _document(
        "2012-10-17",
        *(
            {
                "Effect": "Allow",
                "Action": ["ec2:StopInstances"],
                "Resource": arn,
                "Condition": {"ArnLike": {"ec2:SourceInstanceARN": arn}},
            }
            for arn in _unique(instance.arn for instance in instances)
        ),
    )


NODE_ROLES = "qwenctl-node-"
"""How the names of the roles, and of their policies, begin that nodes on Alibaba Cloud get."""


def node_role_name(instance: Instance) -> str:
    """The name of that instance's role, and of the policy in it.

    RAM allows letters, digits and hyphens; 64 characters for a role. Instance ids have about 22.
    """
    return f"{NODE_ROLES}{instance.instance_id}"


def node_trust(cloud: Cloud, region: str) -> Document:
    """Who may take the node's role: instances."""
    if cloud == "aliyun":
        version, service = "1", "ecs.aliyuncs.com"
    else:
        suffix = ".cn" if partition(region) == "aws-cn" else ""
        version, service = "2012-10-17", f"ec2.amazonaws.com{suffix}"
    return _document(
        version,
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": [service]}},
    )


def admin_policy(config: Config, cloud: Cloud, gpu: str | None = None) -> Document:
    """What `qwenctl provision --apply`, `create` and `release` need, for the GPUs in that cloud or
    one of them.

    Only what carries the deployment's tag can be deleted, and only the roles of nodes can be made
    and given to instances.

    Raises:
        ConfigError: there is no such GPU, or its table lacks the region.
    """
    names = [config.gpu_name(gpu)] if gpu is not None else list(config.gpu)
    gpus = [
        (name, gpu)
        for name in names
        for _, gpu in config.gpu[name].candidates()
        if gpu.provider == cloud
    ]
    if not gpus:
        raise ConfigError(f'no such GPU has provider = "{cloud}"')
    for name, gpu_config in gpus:
        if not getattr(gpu_config, cloud).region:
            raise ConfigError(f"gpu.{name}.{cloud}: region missing")
    if cloud == "aliyun":
        return _aliyun_admin(config.deployment, [gpu.aliyun for _, gpu in gpus])
    return _aws_admin(config.deployment, [gpu.aws for _, gpu in gpus])


def _aliyun_admin(deployment: str, tables: Sequence[AliyunConfig]) -> Document:
    regions = _unique(table.region for table in tables)
    instances = [f"acs:ecs:{region}:*:instance/*" for region in regions]
    groups = [f"acs:ecs:{region}:*:securitygroup/*" for region in regions]
    own_roles = f"acs:ram:*:*:role/{NODE_ROLES}*"
    own_policies = f"acs:ram:*:*:policy/{NODE_ROLES}*"
    # A role's name is in small letters in its resource name.
    templates = (table.template.ram_role_name.lower() for table in tables)
    roles = _unique([own_roles, *(f"acs:ram:*:*:role/{role}" for role in templates if role)])
    return _document(
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


def _aws_admin(deployment: str, tables: Sequence[AwsConfig]) -> Document:
    regions = _unique(table.region for table in tables)
    known = _unique(
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
    profiles = _unique(t.template.instance_profile for t in tables if t.template.instance_profile)
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
    return _document("2012-10-17", *statements)


def partition(region: str) -> str:
    """The first part of AWS resource names in that region."""
    for prefix in ("cn-", "us-gov-"):
        if region.startswith(prefix):
            return f"aws-{prefix.rstrip('-')}"
    return "aws"


def _document(version: str, *statements: Document) -> Document:
    return {"Version": version, "Statement": list(statements)}


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
