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
                "Action": ["ecs:DescribeInstances"],
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
    """What `qwenctl provision create` and `release` need, for the GPUs in that cloud or one of them.

    Only what carries the deployment's tag can be deleted.

    Raises:
        ConfigError: there is no such GPU, or its table lacks the region.
    """
    names = [config.gpu_name(gpu)] if gpu is not None else list(config.gpu)
    names = [name for name in names if config.gpu[name].provider == cloud]
    if not names:
        raise ConfigError(f'no such GPU has provider = "{cloud}"')
    for name in names:
        if not getattr(config.gpu[name], cloud).region:
            raise ConfigError(f"gpu.{name}.{cloud}: region missing")
    gpus = [config.gpu[name] for name in names]
    if cloud == "aliyun":
        return _aliyun_admin(config.deployment, [gpu.aliyun for gpu in gpus])
    return _aws_admin(config.deployment, [gpu.aws for gpu in gpus])


def _aliyun_admin(deployment: str, tables: Sequence[AliyunConfig]) -> Document:
    regions = _unique(table.region for table in tables)
    instances = [f"acs:ecs:{region}:*:instance/*" for region in regions]
    roles = _unique(t.template.ram_role_name for t in tables if t.template.ram_role_name)
    statements: list[Document] = [
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
        {"Effect": "Allow", "Action": ["ecs:DescribeInstances"], "Resource": instances},
        {"Effect": "Allow", "Action": ["ecs:DescribePrice"], "Resource": "*"},
    ]
    if roles:
        statements.append(
            {
                "Effect": "Allow",
                "Action": ["ram:PassRole"],
                "Resource": [f"acs:ram:*:*:role/{role.lower()}" for role in roles],
                "Condition": {"StringEquals": {"acs:Service": "ecs.aliyuncs.com"}},
            }
        )
    return _document("1", *statements)


def _aws_admin(deployment: str, tables: Sequence[AwsConfig]) -> Document:
    regions = _unique(table.region for table in tables)

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
                "ec2:DescribeSpotPriceHistory",
                "ec2:DescribeSubnets",
            ],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": regions}},
        },
    ]
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
