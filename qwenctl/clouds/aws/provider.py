"""One EC2 instance as a `qwenctl.clouds.base.Provider`."""

from __future__ import annotations

from typing import Literal

from qwenctl.clouds.aws.api import Account, account_of, observation
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import Accepted, Context, Observation
from qwenctl.core.claims import TAG
from qwenctl.errors import ConfigError


class AwsProvider:
    """One EC2 instance: a `qwenctl.clouds.base.Provider`.

    Args:
        account: the instance's account.
        instance_id: its id.
        address: the kind of address that the proxy uses.
    """

    observe_interval: float = 10.0  # the agent's hello brings a look at once

    def __init__(
        self,
        account: Account,
        instance_id: str,
        address: Literal["auto", "private", "public"] = "auto",
    ) -> None:
        self.account = account
        self.instance_id = instance_id
        self.call_timeout: float = account.call_timeout
        self._address = address

    def describe(self) -> Observation:
        """Describe the instance, in a call shared with concurrent looks.

        Status checks are not read: the agent's hello says more.
        """
        found = self.account.looks.get(self.instance_id)
        return observation(self.instance_id, found, self._address)

    def start(self) -> Accepted:
        """Start the instance, as `Account.start` does."""
        return Accepted(self.account.start(self.instance_id))

    def stop(self) -> Accepted:
        """Stop the instance, as `Account.stop` does."""
        return Accepted(self.account.stop(self.instance_id))

    def claim(self, value: str) -> None:
        """Tag the instance:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateTags.html.
        """
        tags = [{"Key": TAG, "Value": value}]
        self.account.ask("create_tags", self.instance_id, Resources=[self.instance_id], Tags=tags)


def make(settings: AwsConfig, context: Context) -> AwsProvider:
    """Make the provider of a GPU on EC2.

    Raises:
        ConfigError: no instance is named, or requests would travel unprotected.
        ModuleNotFoundError: boto3 is not installed.
    """
    import botocore  # noqa: F401  (missing: it shows now, and not in the controller's thread)

    table = f"gpu.{context.gpu}.aws"
    if not settings.instance_id:
        raise ConfigError(
            f"{table}.instance_id is not set: name the EC2 instance to start and stop"
        )
    return AwsProvider(account_of(settings, table), settings.instance_id, settings.address)
