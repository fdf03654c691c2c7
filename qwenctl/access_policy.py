"""The least that the proxy and a node must be allowed to do in the cloud, as policy documents.

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

from qwenctl.config import Config
from qwenctl.errors import ConfigError

__all__ = ["CLOUDS", "Cloud", "Instance", "configured", "node_policy", "node_trust", "proxy_policy"]

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
