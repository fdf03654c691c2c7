"""EC2 calls that administration needs and the provider does not."""

from __future__ import annotations

from typing import Any, cast

from qwenctl.clouds.aws.api import Account

__all__ = [
    "aws_endpoint",
    "aws_source",
    "ec2_call",
    "ec2_instance",
]


# AWS


def ec2_call(account: Account, operation: str, instance_id: str, **parameters: Any) -> Any:
    """The answer to one call of EC2.

    Args:
        account: where and as whom.
        operation: boto3's name, such as ``describe_security_groups``.
        instance_id: what it is about, for the sentence of a refusal.
        parameters: boto3's.

    Raises:
        ProviderError: it is refused or not answered.
    """
    return account.call(instance_id, lambda client: getattr(client, operation)(**parameters))


def ec2_instance(account: Account, instance_id: str) -> dict[str, Any]:
    """All that DescribeInstances says of the instance; empty if there is none."""
    return account.describe([instance_id]).get(instance_id, {})


_AWS_SOURCES = {
    "env": "environment variables",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role that the profile assumes",
    "assume-role-with-web-identity": "the web identity token of this pod",
    "sso": "`aws sso login`",
    "login": "`aws login`",
    "custom-process": "the program that the profile names",
    "container-role": "the role of this container",
    "iam-role": "the instance profile of this machine",
}


def aws_source(account: Account) -> str:
    """Where the credentials come from, for people; empty if there are none.

    Raises:
        ProviderError: they cannot be fetched.
    """

    def ask(client: Any) -> str:
        # boto3 has no public way to ask a client for this.
        found = client._request_signer._credentials
        method = str(found.method) if found is not None else ""
        return _AWS_SOURCES.get(method, method)

    return account.call("", ask)


def aws_endpoint(account: Account) -> str:
    """The URL of the EC2 API that the account's calls go to."""
    return account.call("", lambda client: cast(str, client.meta.endpoint_url))
