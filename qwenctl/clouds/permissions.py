"""Parts of the policy documents of all clouds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Instance", "allow", "document", "node_role_name", "unique"]

Document = dict[str, Any]


@dataclass(frozen=True)
class Instance:
    """One instance that the configuration names."""

    gpu: str
    cloud: str
    region: str
    instance_id: str


NODE_ROLES = "qwenctl-node-"
"""How the names of the roles, and of their policies, begin that nodes on Alibaba Cloud get."""


def node_role_name(instance: Instance) -> str:
    """The name of that instance's role, and of the policy in it.

    RAM allows letters, digits and hyphens; 64 characters for a role. Instance ids have about 22.
    """
    return f"{NODE_ROLES}{instance.instance_id}"


def allow(
    actions: Sequence[str], resources: Sequence[str], *, sid: str = "", **condition: Document
) -> Document:
    """Return a statement that allows the actions on the resources, under the condition if given."""
    statement: Document = {"Sid": sid} if sid else {}
    statement |= {"Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})


def document(version: str, *statements: Document) -> Document:
    return {"Version": version, "Statement": list(statements)}


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
