"""What the policy documents of all clouds share, and the policies of a node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CLOUDS",
    "Cloud",
    "Instance",
    "document",
    "node_policy",
    "node_role_name",
    "node_trust",
    "unique",
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


def node_policy(instances: Sequence[Instance]) -> Document:
    """What a node's instance role needs for the dead-man's switch: to stop itself, nothing else.

    Several instances that share one role may not stop each other on EC2, whose condition names the
    instance that asks. Alibaba Cloud has no such condition: give each instance a role of its own.
    """
    if instances[0].cloud == "aliyun":
        return document(
            "1",
            {
                "Effect": "Allow",
                "Action": ["ecs:StopInstance"],
                "Resource": unique(instance.arn for instance in instances),
            },
        )
    return document(
        "2012-10-17",
        *(
            {
                "Effect": "Allow",
                "Action": ["ec2:StopInstances"],
                "Resource": arn,
                "Condition": {"ArnLike": {"ec2:SourceInstanceARN": arn}},
            }
            for arn in unique(instance.arn for instance in instances)
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
    return document(
        version,
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": [service]}},
    )


def partition(region: str) -> str:
    """The first part of AWS resource names in that region."""
    for prefix in ("cn-", "us-gov-"):
        if region.startswith(prefix):
            return f"aws-{prefix.rstrip('-')}"
    return "aws"


def document(version: str, *statements: Document) -> Document:
    return {"Version": version, "Statement": list(statements)}


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
