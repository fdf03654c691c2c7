"""The least that the proxy, a node and an administrator must be allowed to do in the cloud, as
policy documents.

Pure: it makes JSON for an administrator to attach; nothing is read from or written to a cloud.

Which actions can be limited to single instances is the cloud's choice. EC2's start, stop and
``DescribeInstanceAttribute`` can; the other two ``Describe`` actions take ``"Resource": "*"`` only,
so they are limited by region. On Alibaba Cloud a ``Describe`` that lists is checked against
``instance/*`` of the region.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.aliyun.permissions import aliyun_admin_policy
from qwenctl.clouds.aws.permissions import aws_admin_policy
from qwenctl.clouds.permissions import Cloud, Document, Instance, document, unique
from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError

__all__ = [
    "admin_policy",
    "configured",
    "proxy_policy",
]


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
            place = table.settings
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
    arns = unique(instance.arn for instance in instances)
    regions = unique(instance.region for instance in instances)
    if instances[0].cloud == "aliyun":
        return document(
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
    return document(
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
        if not gpu_config.settings.region:
            raise ConfigError(f"gpu.{name}.{cloud}: region missing")
    if cloud == "aliyun":
        return aliyun_admin_policy(config.deployment, [gpu.settings for _, gpu in gpus])
    return aws_admin_policy(config.deployment, [gpu.settings for _, gpu in gpus])
