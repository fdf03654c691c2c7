"""What happens in the fake cloud's RAM: roles, policies with versions, and which role has which.

Statuses and codes are those of the RAM API reference, "RAM API error codes": 404 for what does not
exist, 409 for what exists already and for limits.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_ecs.errors import ApiError

__all__ = ["Policy", "Ram", "Role"]

ACCOUNT = "1234567890123456"
MAX_VERSIONS = 5
MAX_POLICIES_OF_ROLE = 5
MAX_DOCUMENT = 6144


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass
class Role:
    """Who may take it (a trust policy, JSON), and the names of the custom policies that it has."""

    name: str
    trust: str
    description: str = ""
    policies: list[str] = field(default_factory=list)
    made: str = field(default_factory=_now)

    @property
    def for_ecs(self) -> bool:
        """Whether instances may take it."""
        statements = json.loads(self.trust)["Statement"]
        return any("ecs.aliyuncs.com" in one["Principal"].get("Service", ()) for one in statements)


@dataclass
class Policy:
    """A custom policy; the versions that it has, by id."""

    name: str
    versions: dict[str, str]
    default: str = "v1"
    description: str = ""
    made: str = field(default_factory=_now)
    count: int = 1

    @property
    def document(self) -> Any:
        """What is in force."""
        return json.loads(self.versions[self.default])


class Ram:
    """The roles and the custom policies of one account."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.policies: dict[str, Policy] = {}

    # Roles

    def _do_GetRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        return {"Role": _shown_role(self._role(parameters))}

    def _do_CreateRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        name = _name(parameters, "RoleName", r"[A-Za-z0-9.-]+", 64)
        trust = _document(parameters, "AssumeRolePolicyDocument")
        if name in self.roles:
            raise ApiError(409, "EntityAlreadyExists.Role", "The role does already exist.")
        role = Role(name, trust, parameters.get("Description", ""))
        self.roles[name] = role
        return {"Role": _shown_role(role)}

    def _do_ListPoliciesForRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        role = self._role(parameters)
        found = [self.policies[name] for name in role.policies]
        shown = [
            {
                "PolicyName": policy.name,
                "PolicyType": "Custom",
                "Description": policy.description,
                "DefaultVersion": policy.default,
                "AttachDate": policy.made,
            }
            for policy in found
        ]
        return {"Policies": {"Policy": shown}}

    def _do_AttachPolicyToRole(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        role, policy = self._role(parameters), self._policy(parameters)
        if policy.name in role.policies:
            raise ApiError(
                409,
                "EntityAlreadyExists.Role.Policy",
                "The role has already been attached this policy.",
            )
        if len(role.policies) >= MAX_POLICIES_OF_ROLE:
            raise ApiError(409, "LimitExceeded.Role.Policy")
        role.policies.append(policy.name)
        return {}

    # Policies

    def _do_GetPolicy(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        policy = self._policy(parameters)
        return {
            "Policy": _shown_policy(policy)
            | {"AttachmentCount": sum(policy.name in r.policies for r in self.roles.values())},
            "DefaultPolicyVersion": _shown_version(policy, policy.default),
        }

    def _do_CreatePolicy(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        name = _name(parameters, "PolicyName", r"[A-Za-z0-9-]+", 128)
        document = _document(parameters, "PolicyDocument")
        if name in self.policies:
            raise ApiError(409, "EntityAlreadyExists.Policy", "The policy does already exist.")
        policy = Policy(name, {"v1": document}, description=parameters.get("Description", ""))
        self.policies[name] = policy
        return {"Policy": _shown_policy(policy)}

    def _do_CreatePolicyVersion(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        policy = self._policy({"PolicyType": "Custom", **parameters})
        document = _document(parameters, "PolicyDocument")
        if len(policy.versions) >= MAX_VERSIONS:
            strategy = parameters.get("RotateStrategy", "None")
            if strategy != "DeleteOldestNonDefaultVersionWhenLimitExceeded":
                raise ApiError(409, "LimitExceeded.Policy.Version")
            del policy.versions[next(v for v in policy.versions if v != policy.default)]
        policy.count += 1
        version = f"v{policy.count}"
        policy.versions[version] = document
        if parameters.get("SetAsDefault", "").lower() == "true":
            policy.default = version
        return {"PolicyVersion": _shown_version(policy, version)}

    # Looking up

    def _role(self, parameters: Mapping[str, str]) -> Role:
        name = _name(parameters, "RoleName", r"[A-Za-z0-9.-]+", 64)
        if name not in self.roles:
            raise ApiError(404, "EntityNotExist.Role", "The role not exists.")
        return self.roles[name]

    def _policy(self, parameters: Mapping[str, str]) -> Policy:
        name = _name(parameters, "PolicyName", r"[A-Za-z0-9-]+", 128)
        if parameters.get("PolicyType") not in ("Custom", "System"):
            raise ApiError(400, "InvalidParameter.PolicyType")
        if parameters["PolicyType"] == "System" or name not in self.policies:
            raise ApiError(404, "EntityNotExist.Policy", "The policy not exists.")
        return self.policies[name]


def _name(parameters: Mapping[str, str], which: str, allowed: str, longest: int) -> str:
    name = parameters.get(which, "")
    if not name:
        raise ApiError(400, f"Missing{which}")
    if not re.fullmatch(allowed, name):
        raise ApiError(400, f"InvalidParameter.{which}.InvalidChars")
    if len(name) > longest:
        raise ApiError(400, f"InvalidParameter.{which}.Length")
    return name


def _document(parameters: Mapping[str, str], which: str) -> str:
    text = parameters.get(which, "")
    if len(text) > MAX_DOCUMENT:
        raise ApiError(400, f"InvalidParameter.{which}.Length")
    try:
        found = json.loads(text)
        version, statements = found["Version"], found["Statement"]
        sound = version == "1" and all({"Effect", "Action"} <= one.keys() for one in statements)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ApiError(400, "MalformedPolicyDocument")
    return text


def _shown_role(role: Role) -> dict[str, Any]:
    return {
        "RoleId": "901234567890123",
        "RoleName": role.name,
        "Arn": f"acs:ram::{ACCOUNT}:role/{role.name.lower()}",
        "AssumeRolePolicyDocument": role.trust,
        "Description": role.description,
        "MaxSessionDuration": 3600,
        "CreateDate": role.made,
    }


def _shown_policy(policy: Policy) -> dict[str, Any]:
    return {
        "PolicyName": policy.name,
        "PolicyType": "Custom",
        "Description": policy.description,
        "DefaultVersion": policy.default,
        "CreateDate": policy.made,
    }


def _shown_version(policy: Policy, version: str) -> dict[str, Any]:
    return {
        "VersionId": version,
        "IsDefaultVersion": version == policy.default,
        "PolicyDocument": policy.versions[version],
        "CreateDate": policy.made,
    }
