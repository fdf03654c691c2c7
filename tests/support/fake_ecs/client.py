"""Providers that speak with the fake endpoint."""

from __future__ import annotations

from typing import Any

from alibabacloud_credentials.provider import (
    StaticAKCredentialsProvider,
    StaticSTSCredentialsProvider,
)

from qwenctl.clouds.aliyun.api import Credentials, Ecs
from qwenctl.clouds.aliyun.provider import AliyunProvider
from qwenctl.clouds.aliyun.settings import AliyunConfig
from tests.support.fake_ecs.server import FakeEcs, Key

__all__ = ["INSTANCE", "config_for", "credentials_of", "provider_for"]

INSTANCE = "i-bp1fake0001"


def credentials_of(key: Key) -> Credentials:
    """The key, without looking for one in the environment."""
    if key.token:
        sts: Credentials = StaticSTSCredentialsProvider(
            access_key_id=key.id, access_key_secret=key.secret, security_token=key.token
        )
        return sts
    found: Credentials = StaticAKCredentialsProvider(
        access_key_id=key.id, access_key_secret=key.secret
    )
    return found


def config_for(fake: FakeEcs, **settings: Any) -> AliyunConfig:
    """An ``aliyun`` table for `INSTANCE`."""
    defaults = {
        "region": fake.cloud.region,
        "instance_id": INSTANCE,
        "endpoint": fake.endpoint,
        "ram_endpoint": fake.endpoint,
        "protocol": "http",
    }
    return AliyunConfig.model_validate(defaults | settings)


def provider_for(fake: FakeEcs, *, key: Key | None = None, **settings: Any) -> AliyunProvider:
    """A provider of `INSTANCE` that signs with ``key``, or the fake's first."""
    config = config_for(fake, **settings)
    return AliyunProvider(config, ecs=Ecs(config, credentials_of(key or fake.key)))
