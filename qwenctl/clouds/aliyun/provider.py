"""One ECS instance as a `qwenctl.clouds.base.Provider`."""

from __future__ import annotations

import time

from qwenctl.clouds.aliyun.api import Ecs, Instance, arn_of, ecs_of
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import Accepted, Conflict, Context, Denied, NotFound, Observation
from qwenctl.core.claims import TAG
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import is_loopback


class AliyunProvider:
    """One ECS instance: a `qwenctl.clouds.base.Provider`.

    ``start`` and ``stop`` look first. Of two concurrent starts the cloud refuses the second, and
    another look finds the instance starting.
    """

    observe_interval: float = 10.0  # the agent's hello brings a look at once

    def __init__(self, config: AliyunConfig, *, ecs: Ecs | None = None) -> None:
        """``ecs``: an API shared with other instances of the same account and region."""
        self._config = config
        self._id = config.instance_id
        self._ecs = ecs or ecs_of(config)
        # A look and a call with full patience; a look after them gets the remaining time.
        self.call_timeout = 2 * self._ecs.patience

    def describe(self) -> Observation:
        """Describe the instance, in a call shared with concurrent looks.

        Raises:
            Denied, Throttled, Transient, ProviderError: the cloud refuses or does not answer.
        """
        try:
            instance = self._ecs.looks.get(self._id)
        except NotFound:
            instance = None
        if instance is None:
            absent = (
                f"there is no such instance in {self._ecs.region}, or the RAM user or role may not "
                "do ecs:DescribeInstances on it"
            )
            return Observation(Observed.ABSENT, self._id, reason=absent)
        config = self._config
        return instance.observation(config.address, keep_charging=config.keep_charging)

    def start(self) -> Accepted:
        """Start the instance, unless it starts or runs already.

        An instance whose stop would not end its billing is refused before it costs anything; see
        `qwenctl.clouds.aliyun.api`.

        Raises:
            Conflict: it is being stopped.
            NoCapacity: no stock, or a spot price above the limit.
            NotFound, Denied, Throttled, ProviderError: the cloud refuses.
            Transient: not answered; it may have been accepted.
        """
        deadline = time.monotonic() + self.call_timeout
        instance = self._read(deadline)
        if instance.state in (Observed.STARTING, Observed.RUNNING):
            return Accepted()
        if instance.state is Observed.STOPPING:
            raise Conflict("the instance is being stopped", cloud_code="IncorrectInstanceStatus")
        if not self._config.keep_charging and (why := instance.keeps_charging):
            raise Denied(
                f"{self._id} is not started because stopping it would not end its billing: {why}; "
                "use a pay-as-you-go instance of another family, or set aliyun.keep_charging = true"
            )
        return self._act("StartInstance", deadline, (Observed.STARTING, Observed.RUNNING))

    def stop(self) -> Accepted:
        """Stop the instance in economical mode, unless it stops already.

        Raises:
            Conflict: it is still starting.
            NotFound, Denied, Throttled, ProviderError: the cloud refuses.
            Transient: not answered; it may have been accepted.
        """
        deadline = time.monotonic() + self.call_timeout
        over = (Observed.STOPPING, Observed.STOPPED)
        if self._read(deadline).state in over:
            return Accepted()
        return self._act("StopInstance", deadline, over, StoppedMode="StopCharging")

    def claim(self, value: str) -> None:
        """Tag the instance:
        https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-tagresources.
        """
        self._ecs.call(
            "TagResources",
            arn_of(self._ecs.region, self._id),
            ResourceType="instance",
            ResourceIds=[self._id],
            Tags=[{"Key": TAG, "Value": value}],
        )

    def _act(
        self, action: str, deadline: float, goal: tuple[Observed, ...], **parameters: object
    ) -> Accepted:
        """Make the call once. If refused for the state, succeed if the goal is reached."""
        try:
            answer = self._ecs.call(
                action,
                arn_of(self._ecs.region, self._id),
                deadline,
                InstanceId=self._id,
                **parameters,
            )
        except Conflict:
            if self._read(deadline).state in goal:
                return Accepted()
            raise
        return Accepted(str(answer["RequestId"]))

    def _read(self, deadline: float) -> Instance:
        """Describe the instance once, which leaves time for the call that follows."""
        soon = min(deadline, time.monotonic() + self._ecs.patience)
        found = self._ecs.describe([self._id], soon)
        if self._id not in found:
            raise NotFound(f"there is no instance {self._id} in {self._ecs.region}")
        return found[self._id]


def make(settings: AliyunConfig, context: Context) -> AliyunProvider:
    """Make the provider of a GPU on Alibaba Cloud.

    Raises:
        ConfigError: a setting is missing, or requests would travel unprotected.
        ModuleNotFoundError: the SDK is not installed.
    """
    table = f"gpu.{context.gpu}.aliyun"
    for key in ("region", "instance_id"):
        if not getattr(settings, key):
            raise ConfigError(f'{table}.{key} is missing (provider = "aliyun")')
    endpoints = [settings.endpoint]
    if settings.ram_endpoint:  # without one, RAM is asked by https
        endpoints.append(settings.ram_endpoint)
    if settings.protocol == "http" and not all(
        is_loopback(endpoint.rpartition(":")[0] or endpoint) for endpoint in endpoints
    ):
        raise ConfigError(
            f'{table}.protocol: "http" is only for an endpoint on this machine; '
            "VPC endpoints speak https too"
        )
    return AliyunProvider(settings)
