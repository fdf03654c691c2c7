"""The fake endpoint is as strict as the cloud, and answers as the official SDKs expect."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from alibabacloud_ecs20140526 import models
from alibabacloud_ram20150501 import models as ram_models

from tests.support.fake_ecs import FakeEcs, Key
from tests.support.fake_ecs.server import sign, string_to_sign

TEMPORARY = Key("STS.NTfake", "temporary-secret", "token-of-one-hour")


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs(keys=(Key("LTAI5tFakeKeyId00", "fake-secret-00"), TEMPORARY)) as endpoint:
        yield endpoint


def request(
    fake: FakeEcs, action: str, *, key: Key | None = None, **changes: str
) -> dict[str, str]:
    """A signed request's parameters; what is empty is left out."""
    key = key or fake.key
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    parameters = {
        "Action": action,
        "Version": "2014-05-26",
        "Format": "JSON",
        "RegionId": "cn-hangzhou",
        "AccessKeyId": key.id,
        "SecurityToken": key.token,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": stamp,
        **changes,
    }
    parameters = {name: value for name, value in parameters.items() if value}
    parameters.setdefault("Signature", sign(string_to_sign("POST", parameters), key.secret))
    return parameters


def ask(fake: FakeEcs, parameters: dict[str, str]) -> tuple[int, dict[str, Any]]:
    answer = requests.post(f"http://{fake.endpoint}/", params=parameters, timeout=30)
    return answer.status_code, dict(answer.json())


def call(fake: FakeEcs, action: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    return ask(fake, request(fake, action, **changes))


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"Signature": "bm90IG91cnM="}, 400, "SignatureDoesNotMatch"),
    ({"AccessKeyId": "LTAI5tNobody"}, 404, "InvalidAccessKeyId.NotFound"),
    ({"Timestamp": "2020-01-01T00:00:00Z"}, 400, "InvalidTimeStamp.Expired"),
    ({"Timestamp": "yesterday"}, 400, "InvalidTimeStamp.Format"),
    ({"SecurityToken": "another"}, 400, "InvalidSecurityToken.MismatchWithAccessKey"),
    ({"key": Key(TEMPORARY.id, TEMPORARY.secret)}, 400, "MissingSecurityToken"),
    ({"RegionId": "cn-nowhere"}, 404, "InvalidRegionId.NotFound"),
    ({"Version": "2013-01-10"}, 400, "InvalidVersion"),
    ({"Action": "MakeCoffee"}, 404, "InvalidApi.NotFound"),
    ({"SignatureNonce": ""}, 400, "MissingSignatureNonce"),
]


@pytest.mark.parametrize(("changes", "status", "code"), REFUSED)
def test_what_the_cloud_refuses_is_refused(
    fake: FakeEcs, changes: dict[str, Any], status: int, code: str
) -> None:
    found, answer = call(fake, "DescribeInstances", **changes)
    assert (found, answer["Code"]) == (status, code)
    assert answer["RequestId"]
    assert not fake.cloud.accepted


def test_a_changed_parameter_spoils_the_signature(fake: FakeEcs) -> None:
    parameters = request(fake, "DescribeInstances", InstanceIds='["i-1"]')
    assert ask(fake, parameters | {"InstanceIds": '["i-2"]'})[1]["Code"] == "SignatureDoesNotMatch"
    assert ask(fake, parameters)[0] == 200


def test_a_request_is_not_accepted_twice(fake: FakeEcs) -> None:
    parameters = request(fake, "DescribeInstances")
    assert ask(fake, parameters)[0] == 200
    assert ask(fake, parameters)[1]["Code"] == "SignatureNonceUsed"


def test_a_temporary_key_is_accepted_with_its_token(fake: FakeEcs) -> None:
    assert call(fake, "DescribeInstances", key=TEMPORARY)[0] == 200


def test_a_dry_run_changes_nothing_and_is_an_error(fake: FakeEcs) -> None:
    instance = fake.cloud.add()
    for action, status in (("StartInstance", "Stopped"), ("StopInstance", "Running")):
        instance.status = status
        found, answer = call(fake, action, InstanceId=instance.id, DryRun="true")
        assert (found, answer["Code"]) == (400, "DryRunOperation")
        assert instance.status == status
    instance.status = "Starting"
    found, answer = call(fake, "StartInstance", InstanceId=instance.id, DryRun="true")
    assert (found, answer["Code"]) == (403, "IncorrectInstanceStatus")
    assert (instance.starts, instance.stops) == (0, 0)


def test_without_a_mode_the_accounts_default_decides(fake: FakeEcs) -> None:
    instance = fake.cloud.add(status="Running", stop_seconds=0)
    assert call(fake, "StopInstance", InstanceId=instance.id)[0] == 200
    deadline = time.monotonic() + 20
    while instance.status != "Stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert instance.stopped_mode == "KeepCharging"


def test_the_list_comes_in_pages(fake: FakeEcs) -> None:
    for number in range(7):
        fake.cloud.add(f"i-bp1page{number}")
    pages = [
        call(fake, "DescribeInstances", PageSize="3", PageNumber=str(number))[1]
        for number in (1, 2, 3)
    ]
    ids = [each["InstanceId"] for page in pages for each in page["Instances"]["Instance"]]
    assert ids == [f"i-bp1page{number}" for number in range(7)]
    assert {page["TotalCount"] for page in pages} == {7}
    assert call(fake, "DescribeInstances", PageSize="101")[0] == 400


def test_a_client_token_makes_one_instance(fake: FakeEcs) -> None:
    def run(**changes: str) -> tuple[int, dict[str, Any]]:
        return call(fake, "RunInstances", **{**NEW, "ClientToken": "t1", **changes})

    assert run(DryRun="true")[1]["Code"] == "DryRunOperation"
    assert not fake.cloud.instances
    [made] = run()[1]["InstanceIdSets"]["InstanceIdSet"]
    fake.cloud.in_stock, fake.cloud.quota = False, 0  # nothing more is made by a repetition
    assert run()[1]["InstanceIdSets"]["InstanceIdSet"] == [made]
    assert run(InstanceType="ecs.gn6i-c4g1.xlarge")[1]["Code"] == "IdempotentParameterMismatch"
    assert run(ClientToken="t2")[1]["Code"] == "QuotaExceed.ElasticQuota"
    fake.cloud.quota = 9
    assert run(ClientToken="t2")[1]["Code"] == "OperationDenied.NoStock"
    assert list(fake.cloud.instances) == [made]
    assert call(fake, "DeleteInstance", InstanceId=made)[1]["Code"] == "IncorrectInstanceStatus"
    assert call(fake, "DeleteInstance", InstanceId=made, Force="true")[0] == 200
    assert run()[1]["InstanceIdSets"]["InstanceIdSet"] == [made]
    assert not fake.cloud.instances  # the token remembers it, and it stays gone


def test_instances_are_found_by_tags(fake: FakeEcs) -> None:
    fake.cloud.add("i-bp1mine", tags={"a": "1", "b": "2"})
    fake.cloud.add("i-bp1other", tags={"a": "1"})
    tags = {"Tag.1.Key": "a", "Tag.1.Value": "1", "Tag.2.Key": "b", "Tag.2.Value": "2"}
    answer = call(fake, "DescribeInstances", **tags)[1]
    assert [one["InstanceId"] for one in answer["Instances"]["Instance"]] == ["i-bp1mine"]


# The official V2 SDK's typed models: what they do not know is lost on the way through them.

RESPONSES = {
    "AttachInstanceRamRole": models.AttachInstanceRamRoleResponseBody,
    "DeleteInstance": models.DeleteInstanceResponseBody,
    "DescribeInstanceRamRole": models.DescribeInstanceRamRoleResponseBody,
    "DescribeInstances": models.DescribeInstancesResponseBody,
    "DescribePrice": models.DescribePriceResponseBody,
    "RunInstances": models.RunInstancesResponseBody,
    "StartInstance": models.StartInstanceResponseBody,
    "StopInstance": models.StopInstanceResponseBody,
}

NEW = {
    "ImageId": "ubuntu_22_04",
    "InstanceType": "ecs.gn7i-c8g1.2xlarge",
    "VSwitchId": "vsw-bp1fake",
    "SecurityGroupId": "sg-bp1fake",
}
PARAMETERS: dict[str, dict[str, str]] = {
    "DescribeInstances": {},
    "DescribePrice": {"ResourceType": "instance", "PriceUnit": "Hour"},
    "RunInstances": NEW,
}


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("DescribeInstances", {"locks": ["Recycling"], "eip": "47.1.1.1", "has_public_ip": True}),
        ("DescribeInstances", {"status": "Running", "public_ip": "47.2.2.2", "vpc": False}),
        ("DescribeInstances", {"charge_type": "PrePaid", "local_disks": 1}),
        ("DescribeInstances", {"tags": {"qwenctl:gpu": "main"}}),
        ("DescribePrice", {}),
        ("RunInstances", {}),
        ("DeleteInstance", {}),
        ("StartInstance", {}),
        ("StopInstance", {"status": "Running"}),
    ],
)
def test_answers_fit_the_official_models(
    fake: FakeEcs, action: str, fields: dict[str, Any]
) -> None:
    instance = fake.cloud.add(**fields)
    extra = PARAMETERS.get(action, {"InstanceId": instance.id})
    status, answer = call(fake, action, **extra)
    assert status == 200
    parsed = RESPONSES[action]().from_map(answer)
    parsed.validate()
    assert parsed.to_map() == answer
    if action == "DescribeInstances":
        shown = parsed.instances.instance[0]
        assert shown.instance_id == instance.id
        assert shown.stopped_mode == instance.stopped_mode
        assert shown.instance_charge_type == instance.charge_type
        assert [lock.lock_reason for lock in shown.operation_locks.lock_reason] == instance.locks


# RAM

TRUST = json.dumps(
    {
        "Version": "1",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": "sts:AssumeRole",
                "Principal": {"Service": ["ecs.aliyuncs.com"]},
            }
        ],
    }
)
DOCUMENT = json.dumps(
    {"Version": "1", "Statement": [{"Effect": "Allow", "Action": "ecs:*", "Resource": "*"}]}
)
ROLE = {"RoleName": "node"}
POLICY = {"PolicyName": "node", "PolicyType": "Custom"}
RAM_CALLS: list[tuple[str, dict[str, str]]] = [
    ("CreateRole", {**ROLE, "AssumeRolePolicyDocument": TRUST, "Description": "of a node"}),
    ("GetRole", ROLE),
    ("CreatePolicy", {"PolicyName": "node", "PolicyDocument": DOCUMENT}),
    ("GetPolicy", POLICY),
    ("CreatePolicyVersion", {"PolicyName": "node", "PolicyDocument": DOCUMENT}),
    ("AttachPolicyToRole", {**ROLE, **POLICY}),
    ("ListPoliciesForRole", ROLE),
]


def ram(fake: FakeEcs, action: str, parameters: dict[str, str]) -> tuple[int, dict[str, Any]]:
    return call(fake, action, Version="2015-05-01", RegionId="", **parameters)


def test_answers_of_ram_fit_the_official_models(fake: FakeEcs) -> None:
    for action, parameters in RAM_CALLS:
        known = getattr(ram_models, f"{action}Request")().from_map(parameters).to_map()
        assert parameters.items() <= known.items()  # no parameter that the API does not have
        status, answer = ram(fake, action, parameters)
        assert status == 200, answer
        parsed = getattr(ram_models, f"{action}ResponseBody")().from_map(answer)
        parsed.validate()
        assert parsed.to_map() == answer


def test_answers_about_instance_roles_fit_the_official_models(fake: FakeEcs) -> None:
    ram(fake, *RAM_CALLS[0])
    ids = json.dumps([fake.cloud.add("i-bp1a").id, fake.cloud.add("i-bp1b", ram_role="x").id])
    status, answer = call(fake, "AttachInstanceRamRole", InstanceIds=ids, RamRoleName="node")
    assert status == 200
    assert RESPONSES["AttachInstanceRamRole"]().from_map(answer).to_map() == answer
    results = answer["AttachInstanceRamRoleResults"]["AttachInstanceRamRoleResult"]
    assert [one["Success"] for one in results] == [True, False]  # one has a role already
    assert answer["FailCount"] == 1
    status, answer = call(fake, "DescribeInstanceRamRole", InstanceIds=ids)
    assert status == 200
    assert RESPONSES["DescribeInstanceRamRole"]().from_map(answer).to_map() == answer
    sets = answer["InstanceRamRoleSets"]["InstanceRamRoleSet"]
    assert [one["RamRoleName"] for one in sets] == ["node", "x"]


REFUSED_BY_RAM: list[tuple[str, dict[str, str], int, str]] = [
    ("GetRole", {"RoleName": "nobody"}, 404, "EntityNotExist.Role"),
    ("GetRole", {"RoleName": "a_b"}, 400, "InvalidParameter.RoleName.InvalidChars"),
    ("CreateRole", RAM_CALLS[0][1], 409, "EntityAlreadyExists.Role"),
    (
        "CreateRole",
        {"RoleName": "x" * 65, "AssumeRolePolicyDocument": TRUST},
        400,
        "InvalidParameter.RoleName.Length",
    ),
    ("CreatePolicy", RAM_CALLS[2][1], 409, "EntityAlreadyExists.Policy"),
    ("CreatePolicy", {"PolicyName": "p", "PolicyDocument": "{}"}, 400, "MalformedPolicyDocument"),
    ("GetPolicy", {**POLICY, "PolicyName": "none"}, 404, "EntityNotExist.Policy"),
    ("GetPolicy", {"PolicyName": "node"}, 400, "InvalidParameter.PolicyType"),
    ("AttachPolicyToRole", {**ROLE, **POLICY}, 409, "EntityAlreadyExists.Role.Policy"),
    ("StartInstance", {"InstanceId": "i-1"}, 404, "InvalidApi.NotFound"),
]


@pytest.mark.parametrize(("action", "parameters", "status", "code"), REFUSED_BY_RAM)
def test_what_ram_refuses_is_refused(
    fake: FakeEcs, action: str, parameters: dict[str, str], status: int, code: str
) -> None:
    for once in RAM_CALLS:
        ram(fake, *once)
    found, answer = ram(fake, action, parameters)
    assert (found, answer["Code"]) == (status, code)


def test_a_policy_has_five_versions_at_most(fake: FakeEcs) -> None:
    ram(fake, *RAM_CALLS[2])
    more = RAM_CALLS[4][1]
    for _ in range(4):
        assert ram(fake, "CreatePolicyVersion", more)[0] == 200
    assert ram(fake, "CreatePolicyVersion", more)[1]["Code"] == "LimitExceeded.Policy.Version"
    rotate = {"RotateStrategy": "DeleteOldestNonDefaultVersionWhenLimitExceeded"}
    assert ram(fake, "CreatePolicyVersion", {**more, **rotate, "SetAsDefault": "true"})[0] == 200
    policy = fake.cloud.ram.policies["node"]
    assert (list(policy.versions), policy.default) == (["v1", "v3", "v4", "v5", "v6"], "v6")


def test_a_signature_for_ram_is_looked_at_too(fake: FakeEcs) -> None:
    answer = ram(fake, "GetRole", {**ROLE, "Signature": "bm90IG91cnM="})[1]
    assert answer["Code"] == "SignatureDoesNotMatch"
