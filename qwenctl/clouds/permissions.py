"""Parts of policy documents that all clouds share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Instance:
    """An instance that the configuration names."""

    gpu: str
    cloud: str
    region: str
    instance_id: str


NODE_ROLES = "qwenctl-node-"
"""The prefix of the names of nodes' roles and policies on Alibaba Cloud."""


def node_role_name(instance: Instance) -> str:
    """Return the name of the instance's role and of its policy.

    RAM allows 64 characters, among them letters, digits and hyphens; instance ids have about 22:
    https://www.alibabacloud.com/help/en/ram/developer-reference/api-ram-2015-05-01-createrole.
    """
    return f"{NODE_ROLES}{instance.instance_id}"


def allow(
    actions: Sequence[str], resources: Sequence[str], *, sid: str = "", **condition: Document
) -> Document:
    """Return a statement that allows the actions on the resources."""
    statement: Document = {"Sid": sid} if sid else {}
    statement |= {"Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def document(version: str, *statements: Document) -> Document:
    return {"Version": version, "Statement": list(statements)}


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
