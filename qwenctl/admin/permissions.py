"""Make the least-privilege policies of the proxy, a node and an administrator.

Pure: the JSON is for an administrator to attach; no cloud is called.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenctl.clouds.admin import Admin, admin_of
from qwenctl.clouds.permissions import Document, Instance
from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError


def configured(config: Config, cloud: str, gpu: str | None = None) -> list[Instance]:
    """Return the configured instances in that cloud, or only those of one GPU.

    Raises:
        ConfigError: there is no instance, or its table lacks the region or the instance id.
    """
    names = [config.gpu_name(gpu)] if gpu is not None else list(config.gpu)
    _admin(cloud)
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
    """Allow describing, starting and stopping exactly these instances of one cloud."""
    return _admin(instances[0].cloud).proxy_policy(instances)


def node_policy(instances: Sequence[Instance]) -> Document:
    """Allow a node of these instances of one cloud to stop itself, nothing else."""
    return _admin(instances[0].cloud).node_policy(instances)


def node_trust(cloud: str, region: str) -> Document:
    """Allow the instances of a cloud to take the node's role."""
    return _admin(cloud).node_trust(region)


def _admin(cloud: str) -> Admin:
    if (found := admin_of(cloud)) is None:
        raise ConfigError(f"the provider {cloud!r} has no permissions to print")
    return found


def admin_policy(config: Config, cloud: str, gpu: str | None = None) -> Document:
    """Allow the calls of `qwenctl provision --apply`, `create` and `release`.

    Only resources with the deployment's tag can be deleted, and only roles of nodes can be created
    and attached to instances.

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
    return _admin(cloud).admin_policy(config.deployment, [gpu.settings for _, gpu in gpus])
