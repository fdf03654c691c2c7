"""`qwenctl provision --apply` gives an instance on Alibaba Cloud its role: the real SDK, over HTTP."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import uuid

import pytest
import requests

from qwenctl.admin.permissions import admin_policy, node_policy, node_trust
from qwenctl.clouds.aliyun import ram_role as node_role
from qwenctl.clouds.aliyun.api import Ecs
from qwenctl.clouds.aliyun.ram_role import Ram, apply_role
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import Denied, ProviderError, Throttled, Transient
from qwenctl.clouds.permissions import Instance
from qwenctl.clouds.plan import Change
from qwenctl.config.loading import load_config
from qwenctl.errors import ExitCode
from tests.integration.qwenctl.admin.commands import Configure, Run, WholeCloud, aliyun_table
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import INSTANCE, config_for, credentials_of
from tests.support.fake_ecs.cloud import GROUP
from tests.support.fake_ecs.ram import Policy, Role
from tests.support.fake_ecs.server import sign, string_to_sign

NAME = f"qwenctl-node-{INSTANCE}"
HERE = Instance("main", "aliyun", "cn-hangzhou", INSTANCE)
TRUST = json.dumps(node_trust("aliyun", "cn-hangzhou"))
WRITES = ("CreateRole", "CreatePolicy", "AttachPolicyToRole", "AttachInstanceRamRole")
ALL_WRITES = {*WRITES, "CreatePolicyVersion", "AuthorizeSecurityGroup"}


def apply(fake: FakeEcs, *, dry_run: bool = False) -> list[Change]:
    """As the command does it, in this process."""
    config, credentials = config_for(fake), credentials_of(fake.key)
    return list(
        apply_role(Ecs(config, credentials), Ram(config, credentials), HERE, dry_run=dry_run)
    )


def done(changes: list[Change]) -> list[str]:
    return [change.done for change in changes]


def is_complete(cloud: WholeCloud, role: str = NAME) -> bool:
    policy = cloud.ram.policies.get(NAME)
    return (
        cloud.instances[INSTANCE].ram_role == role
        and cloud.ram.roles[role].policies.count(NAME) == 1
        and policy is not None
        and policy.document == node_policy([HERE])
    )


@pytest.fixture(autouse=True)
def instance(cloud: WholeCloud) -> None:
    cloud.add()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_role, "FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setattr(node_role, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(node_role, "SETTLE_SECONDS", 2.5)


# The command


def test_everything_is_made_once(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    path = configure(aliyun_table(ecs))
    first = run("provision", "--apply")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        f"added: {GROUP}: allow tcp 7860 from 10.0.0.5/32",
        f"made: RAM role {NAME}",
        f"made: RAM policy {NAME}",
        f"attached: RAM policy {NAME} to RAM role {NAME}",
        f"attached: RAM role {NAME} to {INSTANCE}",
        "Not done: agent and node secret; `qwenctl provision` prints what to do.",
    ]
    assert is_complete(cloud)
    assert json.loads(cloud.ram.roles[NAME].trust) == node_trust("aliyun", "cn-hangzhou")
    asked = {("ram" if c["Version"] == "2015-05-01" else "ecs", c["Action"]) for c in ecs.calls}
    policy = admin_policy(load_config(str(path), env={}), "aliyun")
    allowed = {action for one in policy["Statement"] for action in one["Action"]}
    assert {f"{service}:{action}" for service, action in asked} <= allowed

    ecs.received.clear()
    again = json.loads(run("provision", "--apply", "--json").stdout)
    assert {change["done"] for change in again["changes"]} == {"already there"}
    assert not ALL_WRITES & set(ecs.received)


def test_a_dry_run_changes_nothing(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    configure(aliyun_table(ecs))
    dry = run("provision", "--apply", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.splitlines() == [
        f"would add: {GROUP}: allow tcp 7860 from 10.0.0.5/32",
        f"would make: RAM role {NAME}",
        f"would make: RAM policy {NAME}",
        f"would attach: RAM policy {NAME} to RAM role {NAME}",
        f"would attach: RAM role {NAME} to {INSTANCE}",
        "Nothing was changed.",
    ]
    assert not ALL_WRITES & set(ecs.received)
    assert (cloud.permits, cloud.ram.roles, cloud.ram.policies) == ([], {}, {})
    alone = run("provision", "--dry-run")
    assert (alone.returncode, alone.stdout) == (ExitCode.USAGE, "")
    assert "--apply" in alone.stderr


@pytest.mark.parametrize("action", ["CreateRole", "GetPolicy", "AttachPolicyToRole"])
def test_without_the_right_it_says_which(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure, action: str
) -> None:
    configure(aliyun_table(ecs))
    ecs.fail(action, "error", times=99, code="NoPermission", status=403)
    refused = run("provision", "--apply")
    assert refused.returncode == ExitCode.DENIED
    [sentence] = refused.stderr.splitlines()
    kind = "policy" if action == "GetPolicy" else "role"
    assert f"may not do ram:{action} on acs:ram:*:*:{kind}/{NAME}" in sentence
    assert "NoPermission" in sentence
    assert "request" in sentence
    # What was done before is said.
    assert refused.stdout.startswith(f"added: {GROUP}: allow tcp 7860")
    ecs.heal()
    assert run("provision", "--apply").returncode == 0
    assert is_complete(cloud)


def test_what_was_done_before_a_refusal_is_in_the_json(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    configure(aliyun_table(ecs))
    ecs.fail("AttachPolicyToRole", "error", times=99, code="NoPermission", status=403)
    refused = run("provision", "--apply", "--json")
    assert refused.returncode == ExitCode.DENIED
    told = json.loads(refused.stdout)
    assert [change["done"] for change in told["changes"]] == ["added", "made", "made"]
    assert "ram:AttachPolicyToRole" in told["error"]
    assert "ram:AttachPolicyToRole" in refused.stderr


def test_without_the_right_to_give_the_role(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    configure(aliyun_table(ecs))
    code = "InvalidUser.PassRoleForbidden"
    ecs.fail("AttachInstanceRamRole", "error", code=code, status=403)
    refused = run("provision", "--apply")
    assert refused.returncode == ExitCode.DENIED
    assert "ram:PassRole" in refused.stderr
    assert code in refused.stderr


def test_a_cut_connection_is_said_and_the_next_run_completes_it(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    configure(aliyun_table(ecs))
    ecs.fail("CreatePolicy", "cut_after")
    cut = run("provision", "--apply")
    assert cut.returncode == ExitCode.UNAVAILABLE
    assert "the connection to the RAM API at 127.0.0.1" in cut.stderr
    assert f"made: RAM role {NAME}" in cut.stdout
    assert run("provision", "--apply").returncode == 0
    assert is_complete(cloud)


def test_the_commands_that_are_printed_do_the_same(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    configure(aliyun_table(ecs))
    printed = run("provision").stdout
    commands = [line for line in printed.splitlines() if line.startswith("  aliyun ")]
    assert len(commands) == 4
    for line in commands:
        words = subprocess.run(
            ["/bin/sh", "-c", f"aliyun() {{ printf '%s\\n' \"$@\"; }}; {line}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert words == shlex.split(line)[1:]
        product, action, *flags = words
        names = [flag.removeprefix("--") for flag in flags[::2]]
        send(ecs, product, action, dict(zip(names, flags[1::2], strict=True)))
    assert is_complete(cloud)
    found = json.loads(run("provision", "--only", "role").stdout)
    assert found["name"] == NAME
    assert [f"  {command}" for command in found["commands"]] == commands
    assert {change.done for change in apply(ecs)} == {"already there"}


def send(fake: FakeEcs, product: str, action: str, parameters: dict[str, str]) -> None:
    """Call the API as Alibaba Cloud's own command line does."""
    query = {
        "Action": action,
        "Version": {"ecs": "2014-05-26", "ram": "2015-05-01"}[product],
        "Format": "JSON",
        "AccessKeyId": fake.key.id,
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **parameters,
    }
    query["Signature"] = sign(string_to_sign("POST", query), fake.key.secret)
    answer = requests.post(f"http://{fake.endpoint}/", params=query, timeout=30)
    assert answer.status_code == 200, answer.text


# What is there already


def test_a_role_that_the_instance_has_gets_the_policy(ecs: FakeEcs, cloud: WholeCloud) -> None:
    cloud.instances[INSTANCE].ram_role = "team-gpu"
    cloud.ram.roles["team-gpu"] = Role("team-gpu", TRUST)
    changes = apply(ecs)
    assert done(changes) == ["note", "made", "attached", "already there"]
    assert "whatever else has the role may then stop" in changes[0].what
    assert is_complete(cloud, "team-gpu")
    assert list(cloud.ram.roles) == ["team-gpu"]
    assert done(apply(ecs)) == ["note", "already there", "already there", "already there"]


def test_a_policy_that_says_something_else_is_corrected(ecs: FakeEcs, cloud: WholeCloud) -> None:
    apply(ecs)
    policy = cloud.ram.policies[NAME]
    wide = {"Effect": "Allow", "Action": ["ecs:*"], "Resource": "*"}
    for version in ("v2", "v3", "v4", "v5"):  # as many as there may be
        policy.versions[version] = json.dumps({"Version": "1", "Statement": [wide]})
    policy.default, policy.count = "v5", 5
    assert done(apply(ecs, dry_run=True)) == [
        "already there",
        "would change",
        "already there",
        "already there",
    ]
    assert policy.default == "v5"
    assert done(apply(ecs)) == ["already there", "changed", "already there", "already there"]
    assert is_complete(cloud)
    assert list(policy.versions) == ["v2", "v3", "v4", "v5", "v6"]
    assert set(done(apply(ecs))) == {"already there"}


def test_the_same_policy_written_otherwise_stays(ecs: FakeEcs, cloud: WholeCloud) -> None:
    text = json.dumps(node_policy([HERE]), indent=4)
    cloud.ram.policies[NAME] = Policy(NAME, {"v1": text})
    assert done(apply(ecs)) == ["made", "already there", "attached", "attached"]
    assert cloud.ram.policies[NAME].versions == {"v1": text}


def test_a_role_of_that_name_which_ecs_may_not_take(ecs: FakeEcs, cloud: WholeCloud) -> None:
    theirs = node_trust("aliyun", "cn-hangzhou")
    theirs["Statement"][0]["Principal"] = {"RAM": ["acs:ram::1234567890123456:root"]}
    cloud.ram.roles[NAME] = Role(NAME, json.dumps(theirs))
    assert done(apply(ecs, dry_run=True))[:2] == ["already there", "note"]
    with pytest.raises(Denied, match="does not trust ECS") as refused:
        apply(ecs)
    assert refused.value.cloud_code == "InvalidRamRole.NotEcsRole"
    assert cloud.instances[INSTANCE].ram_role == ""


def test_a_role_that_is_gone_while_the_instance_still_has_its_name(
    ecs: FakeEcs, cloud: WholeCloud
) -> None:
    apply(ecs)
    cloud.ram.roles.clear()
    assert done(apply(ecs, dry_run=True))[0] == "would make"
    assert done(apply(ecs)) == ["made", "already there", "attached", "already there"]
    assert is_complete(cloud)


def test_the_own_role_that_another_account_may_take(ecs: FakeEcs, cloud: WholeCloud) -> None:
    apply(ecs)
    theirs = node_trust("aliyun", "cn-hangzhou")
    theirs["Statement"][0]["Principal"] = {"RAM": ["acs:ram::9999999999999999:root"]}
    cloud.ram.roles[NAME].trust = json.dumps(theirs)
    changes = apply(ecs)
    assert done(changes) == ["already there", "note", *["already there"] * 3]
    assert "another trust policy" in changes[1].what


@pytest.mark.usefixtures("impatient")
def test_a_foreign_role_that_is_gone(ecs: FakeEcs, cloud: WholeCloud) -> None:
    cloud.instances[INSTANCE].ram_role = "team-gpu"
    with pytest.raises(ProviderError, match="there is no such RAM role") as refused:
        apply(ecs)
    assert refused.value.cloud_code == "EntityNotExist.Role"


@pytest.mark.parametrize("results", [None, [], [{"InstanceId": "i-other", "Code": "200"}]])
def test_an_answer_without_our_instance_is_no_success(
    ecs: FakeEcs, cloud: WholeCloud, monkeypatch: pytest.MonkeyPatch, results: object
) -> None:
    answer = {"AttachInstanceRamRoleResults": {"AttachInstanceRamRoleResult": results}}
    monkeypatch.setattr(cloud, "_do_AttachInstanceRamRole", lambda _: answer)
    with pytest.raises(Transient, match="AttachInstanceRamRole"):
        apply(ecs)


def test_a_refusal_within_an_answer_that_says_success(
    ecs: FakeEcs, cloud: WholeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody gives the instance a role between the look and the call.
    none = {"RegionId": "cn-hangzhou", "TotalCount": 0, "InstanceRamRoleSets": {}}
    none["InstanceRamRoleSets"] = {"InstanceRamRoleSet": []}
    monkeypatch.setattr(cloud, "_do_DescribeInstanceRamRole", lambda _: none)
    cloud.instances[INSTANCE].ram_role = "team-gpu"
    cloud.ram.roles["team-gpu"] = Role("team-gpu", TRUST)
    with pytest.raises(ProviderError, match="has an instance RAM role already") as refused:
        apply(ecs)
    assert refused.value.request_id
    monkeypatch.undo()
    assert done(apply(ecs)) == ["note", "already there", "attached", "already there"]


# Faults


@pytest.mark.parametrize("kind", ["cut_before", "cut_after"])
@pytest.mark.parametrize("action", WRITES)
def test_what_was_cut_off_is_completed(
    ecs: FakeEcs, cloud: WholeCloud, action: str, kind: str
) -> None:
    ecs.fail(action, kind)  # type: ignore[arg-type]
    with pytest.raises(Transient):
        apply(ecs)
    apply(ecs)
    assert is_complete(cloud)
    assert set(done(apply(ecs))) == {"already there"}


@pytest.mark.parametrize(
    "action", ["DescribeInstanceRamRole", "GetRole", "ListPoliciesForRole", *WRITES]
)
def test_throttled(ecs: FakeEcs, cloud: WholeCloud, action: str) -> None:
    ecs.fail(action, "error", code="Throttling.User", status=429)
    apply(ecs)
    assert is_complete(cloud)
    assert ecs.received[action] == 2


@pytest.mark.usefixtures("impatient")
def test_throttled_for_good(ecs: FakeEcs, cloud: WholeCloud) -> None:
    ecs.fail("CreateRole", "error", times=99, code="Throttling.User", status=429)
    with pytest.raises(Throttled):
        apply(ecs)
    assert 2 <= ecs.received["CreateRole"] <= 3  # no storm


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("ListPoliciesForRole", "EntityNotExist.Role"),
        ("AttachPolicyToRole", "EntityNotExist.Role"),
        ("AttachPolicyToRole", "EntityNotExist.Policy"),
        ("AttachInstanceRamRole", "InvalidRamRole.NotFound"),
    ],
)
def test_what_was_just_made_may_be_unknown_for_a_while(
    ecs: FakeEcs, cloud: WholeCloud, action: str, code: str
) -> None:
    ecs.fail(action, "error", times=2, code=code, status=404)
    apply(ecs)
    assert is_complete(cloud)


@pytest.mark.usefixtures("impatient")
def test_a_role_that_stays_unknown(ecs: FakeEcs, cloud: WholeCloud) -> None:
    code = "InvalidRamRole.NotFound"
    ecs.fail("AttachInstanceRamRole", "error", times=99, code=code, status=404)
    with pytest.raises(ProviderError, match="try again in a minute") as refused:
        apply(ecs)
    assert refused.value.cloud_code == code
    ecs.heal()
    assert done(apply(ecs)) == ["already there", "already there", "already there", "attached"]


@pytest.mark.parametrize("action", ["CreateRole", "CreatePolicy", "AttachPolicyToRole"])
def test_somebody_else_makes_the_same_at_the_same_time(
    ecs: FakeEcs, cloud: WholeCloud, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    make = getattr(cloud.ram, f"_do_{action}")

    def twice(parameters: dict[str, str]) -> dict[str, object]:
        make(parameters)  # theirs
        answer: dict[str, object] = make(parameters)  # ours: EntityAlreadyExists
        return answer

    monkeypatch.setattr(cloud.ram, f"_do_{action}", twice)
    apply(ecs)
    assert is_complete(cloud)
    assert not cloud.accepted[action]


def test_too_many_policies(ecs: FakeEcs, cloud: WholeCloud) -> None:
    cloud.instances[INSTANCE].ram_role = "team-gpu"
    names = [f"p{number}" for number in range(5)]
    for name in names:
        cloud.ram.policies[name] = Policy(name, {"v1": TRUST})
    cloud.ram.roles["team-gpu"] = Role("team-gpu", TRUST, policies=names)
    with pytest.raises(Denied, match="quota") as refused:
        apply(ecs)
    assert refused.value.cloud_code == "LimitExceeded.Role.Policy"


# Where RAM is


def test_ram_is_asked_by_https_unless_it_is_on_this_machine() -> None:
    table = AliyunConfig(region="cn-hangzhou", endpoint="127.0.0.1:9", protocol="http")
    ram = Ram(table)
    assert (ram.host, ram.protocol) == ("ram.aliyuncs.com", "https")


def test_nothing_goes_to_another_ram_in_clear(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    table = aliyun_table(ecs)
    elsewhere = table.replace(f'ram_endpoint = "{ecs.endpoint}"', 'ram_endpoint = "192.0.2.1:80"')
    assert elsewhere != table
    configure(elsewhere)
    refused = run("provision", "--apply")
    assert (refused.returncode, refused.stdout) == (ExitCode.USAGE, "")
    assert 'gpu.main.aliyun.protocol: "http" is only for' in refused.stderr
    assert ecs.calls == []
