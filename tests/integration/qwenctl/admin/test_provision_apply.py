"""`qwenctl permissions` and `qwenctl provision` as commands; what --apply changes in both fake clouds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwenctl.errors import ExitCode
from tests.integration.qwenctl.admin.commands import (
    Configure,
    Run,
    WholeCloud,
    aliyun_table,
    aws_table,
)
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.cloud import GROUP
from tests.support.fake_ecs.errors import ApiError
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import MotoCloud

LOCAL = "[gpu.main]\n"


@pytest.fixture
def group(moto: MotoCloud) -> str:
    """A security group of its own in the fake EC2."""
    client = moto.client()
    vpc = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    made = client.create_security_group(GroupName="gpu", Description="of a test", VpcId=vpc)
    return str(made["GroupId"])


def permits(moto: MotoCloud, group: str) -> list[Any]:
    answer = moto.client().describe_security_groups(GroupIds=[group])
    found: list[Any] = answer["SecurityGroups"][0]["IpPermissions"]
    return found


# Printing


def test_policy(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    configure(aliyun_table(ecs))
    done = run("permissions", "aliyun")
    assert json.loads(done.stdout)["Statement"][0]["Resource"] == [
        "acs:ecs:cn-hangzhou:*:instance/i-bp1fake0001"
    ]
    node = json.loads(run("permissions", "aliyun", "--node").stdout)
    assert [one["Action"] for one in node["Statement"]] == [["ecs:StopInstance"]]
    wrong = run("permissions", "aws")
    assert (wrong.returncode, wrong.stdout) == (ExitCode.USAGE, "")
    admin = json.loads(run("permissions", "aliyun", "--admin").stdout)
    assert ["ecs:DeleteInstance"] in [one["Action"] for one in admin["Statement"]]
    both = run("permissions", "aliyun", "--admin", "--node")
    assert (both.returncode, both.stdout) == (ExitCode.USAGE, "")
    assert ecs.calls == []


def test_everything_is_printed_but_the_secret(
    run: Run, ecs: FakeEcs, configure: Configure, tmp_path: Path
) -> None:
    secret = tmp_path / "node.secret"
    secret.write_text("node-secret-of-this-test\n")
    configure(aliyun_table(ecs), top=f'node_secret_file = "{secret}"')
    for arguments in ((), ("--json",), ("--only", "user-data"), ("--only", "script")):
        done = run("provision", *arguments)
        assert done.returncode == 0, done.stderr
        assert "node-secret-of-this-test" not in done.stdout
    assert f"< {secret}" in run("provision").stdout
    assert json.loads(run("provision", "--only", "rules").stdout)[0]["source"] == "10.0.0.5/32"
    assert ecs.calls == []


def test_the_command_for_the_secret_is_safe_to_paste(
    run: Run, ecs: FakeEcs, configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "a b; touch x; $(touch y)"
    configure(aliyun_table(ecs), top=f'state_dir = "{folder}"')
    [line] = [one for one in run("provision").stdout.splitlines() if " ssh root@NODE " in one]
    folder.mkdir()
    (folder / "node.secret").write_text("node-secret-of-this-test\n")
    script = f"ssh() {{ cat; }}; {line}"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "node-secret-of-this-test\n")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_the_secret_goes_into_a_private_file(
    run: Run, ecs: FakeEcs, configure: Configure, tmp_path: Path
) -> None:
    configure(aliyun_table(ecs))
    secret = "node-secret-of-this-test"
    refused = run("provision", "--with-secret", QWENCTL_NODE_SECRET=secret)
    assert (refused.returncode, refused.stdout) == (ExitCode.USAGE, "")
    arguments = ("--only", "user-data", "--with-secret", "-o", "ud.yaml")
    done = run("provision", *arguments, QWENCTL_NODE_SECRET=secret)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout
    path = tmp_path / "ud.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    files = yaml.safe_load(path.read_text())["write_files"]
    assert secret + "\n" in [file["content"] for file in files]


def test_apply_sends_nothing_in_clear_to_another_machine(run: Run, configure: Configure) -> None:
    aliyun = 'region = "cn-hangzhou"\ninstance_id = "i-bp1fake0001"\nprotocol = "http"\n'
    configure(f'[gpu.main]\nprovider = "aliyun"\n[gpu.main.aliyun]\n{aliyun}')
    done = run("provision", "--apply")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert 'gpu.main.aliyun.protocol: "http" is only for' in done.stderr


def test_a_fallback_is_prepared_by_its_name(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    cloud.add("i-bp1fake0002")  # the GPU's own is not there at all
    fallback = '[[gpu.main.fallback]]\nname = "zone-b"\ninstance_id = "i-bp1fake0002"\n'
    configure(aliyun_table(ecs) + fallback)
    done = run("provision", "--fallback", "zone-b", "--apply")
    assert done.returncode == 0, done.stderr
    assert len(cloud.permits) == 1
    refused = run("provision", "--fallback", "zone-c")
    assert refused.returncode == ExitCode.USAGE
    assert "no fallback 'zone-c'; known: zone-b" in refused.stderr


def test_a_local_gpu_needs_nothing(run: Run, configure: Configure) -> None:
    configure(LOCAL)
    done = run("provision")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")


def test_containers_need_docker_on_the_instance(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    told = "an image with Docker and nvidia-container-toolkit"
    command = aliyun_table(ecs)
    configure(command)
    assert told not in run("provision").stdout
    container = '[[gpu.main.service]]\ncontainer = { image = "x" }\n'
    configure(command.partition("[[gpu.main.service]]")[0] + container)
    assert told in run("provision").stdout


# Applying


def test_aliyun_rule_is_added_once(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    cloud.add()
    configure(aliyun_table(ecs))
    done = run("provision", "--apply")
    assert done.returncode == 0, done.stderr
    assert f"added: {GROUP}: allow tcp 7860 from 10.0.0.5/32" in done.stdout
    [permit] = cloud.permits
    assert (permit["PortRange"], permit["SourceCidrIp"]) == ("7860/7860", "10.0.0.5/32")
    again = run("provision", "--apply", "--json")
    assert {c["done"] for c in json.loads(again.stdout)["changes"]} == {"already there"}
    assert len(cloud.permits) == 1
    run("provision", "--apply", "--from", "sg-bp1proxy")
    assert cloud.permits[1]["SourceGroupId"] == "sg-bp1proxy"


def test_aliyun_rule_that_lets_anybody_in_is_pointed_out(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    cloud.add()
    cloud.permits.append(
        {"IpProtocol": "ALL", "PortRange": "-1/-1", "Policy": "Accept", "SourceCidrIp": "0.0.0.0/0"}
    )
    configure(aliyun_table(ecs))
    done = run("provision", "--apply")
    # Without a rule of its own the proxy would be cut off by taking that one away.
    assert f"added: {GROUP}: allow tcp 7860 from 10.0.0.5/32" in done.stdout
    assert f"note: {GROUP} lets anybody reach port 7860" in done.stdout
    assert [permit["SourceCidrIp"] for permit in cloud.permits] == ["0.0.0.0/0", "10.0.0.5/32"]
    assert "already there: sg-bp1fake: allow" in run("provision", "--apply").stdout
    assert len(cloud.permits) == 2


def test_aliyun_denied(run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure) -> None:
    cloud.add()
    ecs.fail("AuthorizeSecurityGroup", "error", code="Forbidden.RAM", status=403)
    configure(aliyun_table(ecs))
    done = run("provision", "--apply")
    assert (done.returncode, done.stdout) == (ExitCode.DENIED, "")
    assert "ecs:AuthorizeSecurityGroup" in done.stderr


def test_the_rules_before_a_refusal_are_said(
    run: Run,
    ecs: FakeEcs,
    cloud: WholeCloud,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud.add()
    configure(aliyun_table(ecs))
    authorize = cloud._do_AuthorizeSecurityGroup

    def one(parameters: dict[str, str]) -> dict[str, Any]:
        if cloud.permits:
            raise ApiError(403, "Forbidden.RAM")
        return authorize(parameters)

    monkeypatch.setattr(cloud, "_do_AuthorizeSecurityGroup", one)
    done = run("provision", "--apply", "--from", "10.0.0.5/32", "--from", "10.0.0.6/32")
    assert done.returncode == ExitCode.DENIED
    assert done.stdout == f"added: {GROUP}: allow tcp 7860 from 10.0.0.5/32\n"


def test_aws_rule_before_a_refusal_is_said(
    run: Run, moto: MotoCloud, ec2: FaultProxy, configure: Configure, group: str
) -> None:
    id_ = moto.new_instance(
        moto.client(), SecurityGroupIds=[group], InstanceInitiatedShutdownBehavior="terminate"
    )
    ec2.add(Fault.error(ec2_error("UnauthorizedOperation"), "ModifyInstanceAttribute"))
    configure(aws_table(ec2.url, id_))
    done = run("provision", "--apply", "--json")
    assert done.returncode == ExitCode.DENIED
    told = json.loads(done.stdout)
    assert [change["done"] for change in told["changes"]] == ["added"]
    assert "UnauthorizedOperation" in told["error"]


def test_aws_rule_and_shutdown(run: Run, moto: MotoCloud, configure: Configure, group: str) -> None:
    client = moto.client()
    id_ = moto.new_instance(
        client, SecurityGroupIds=[group], InstanceInitiatedShutdownBehavior="terminate"
    )
    configure(aws_table(moto.url, id_))
    done = run("provision", "--apply")
    assert done.returncode == 0, done.stderr
    assert f"added: {group}: allow tcp 7860 from 10.0.0.5/32" in done.stdout
    assert "changed: InstanceInitiatedShutdownBehavior = stop" in done.stdout
    assert "role" not in done.stdout  # EC2 needs none
    [permit] = permits(moto, group)
    assert (permit["FromPort"], permit["ToPort"]) == (7860, 7860)
    assert [one["CidrIp"] for one in permit["IpRanges"]] == ["10.0.0.5/32"]
    found = client.describe_instance_attribute(
        InstanceId=id_, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert found["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    again = json.loads(run("provision", "--apply", "--json").stdout)
    assert {change["done"] for change in again["changes"]} == {"already there"}
    assert permits(moto, group) == [permit]


def test_aws_dry_run_changes_nothing(
    run: Run, moto: MotoCloud, configure: Configure, group: str
) -> None:
    client = moto.client()
    id_ = moto.new_instance(
        client, SecurityGroupIds=[group], InstanceInitiatedShutdownBehavior="terminate"
    )
    configure(aws_table(moto.url, id_))
    dry = run("provision", "--apply", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    found = json.loads(dry.stdout)
    assert found["dry_run"] is True
    assert [change["done"] for change in found["changes"]] == ["would add", "would change"]
    assert permits(moto, group) == []
    behavior = client.describe_instance_attribute(
        InstanceId=id_, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behavior["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"


def test_aws_needs_no_role_and_says_why(run: Run, configure: Configure) -> None:
    configure(aws_table("http://127.0.0.1:9", "i-0123456789abcdef0"))
    printed = run("provision").stdout
    assert "None is needed, and --apply makes none" in printed
    assert "aliyun" not in printed


def test_aws_rule_that_somebody_else_adds_first(
    run: Run, moto: MotoCloud, ec2: FaultProxy, configure: Configure, group: str
) -> None:
    id_ = moto.new_instance(moto.client(), SecurityGroupIds=[group])
    duplicate = ec2_error("InvalidPermission.Duplicate")
    ec2.add(Fault.error(duplicate, "AuthorizeSecurityGroupIngress"))
    configure(aws_table(ec2.url, id_))
    assert run("provision", "--apply").returncode == 0


def test_several_groups_need_a_word(
    run: Run, moto: MotoCloud, configure: Configure, group: str
) -> None:
    client = moto.client()
    vpc = client.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["VpcId"]
    made = client.create_security_group(GroupName="other", Description="x", VpcId=vpc)
    id_ = moto.new_instance(client, SecurityGroupIds=[group, made["GroupId"]])
    configure(aws_table(moto.url, id_))
    done = run("provision", "--apply")
    assert (done.returncode, "--security-group" in done.stderr) == (ExitCode.USAGE, True)
    assert run("provision", "--apply", "--security-group", "sg-12345678").returncode == 2
    assert permits(moto, group) == []
    assert run("provision", "--apply", "--security-group", group).returncode == 0
    assert len(permits(moto, group)) == 1


def test_apply_without_a_source(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    configure(aliyun_table(ecs), node_url="https://gpu.example.com")
    done = run("provision", "--apply")
    assert (done.returncode, "--from" in done.stderr) == (ExitCode.USAGE, True)
    assert ecs.calls == []
