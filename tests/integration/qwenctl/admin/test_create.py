"""`qwenctl provision create` makes one instance whatever is cut off; `release` deletes only ours."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from qwenctl.admin.create import create
from qwenctl.clouds.admin import LaunchRequest
from qwenctl.clouds.aliyun.api import Ecs
from qwenctl.clouds.aliyun.create import AliyunCreator
from qwenctl.clouds.aliyun.settings import AliyunTemplate
from qwenctl.config.loading import load_config
from qwenctl.errors import ExitCode, UserError
from qwenctl.store.store import Store
from tests.integration.qwenctl.admin.commands import Configure, Run, WholeCloud
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import config_for, credentials_of
from tests.support.faults import Answered, Fault, FaultProxy
from tests.support.moto_cloud import REGION, MotoCloud
from tests.support.program import PROGRAM, inherited

SECRET = "node-secret-of-this-test"

ALIYUN = """
[gpu.main]
provider = "aliyun"
[gpu.main.aliyun]   # the cloud
region = "cn-hangzhou"
endpoint = "{endpoint}"
protocol = "http"
[gpu.main.aliyun.template]
image_id = "ubuntu_22_04"
instance_type = "ecs.gn7i-c8g1.2xlarge"
vswitch_id = "vsw-bp1fake"
security_group_id = "sg-bp1fake"
ram_role_name = "qwenctl-node"
[[gpu.main.service]]
command = ["run"]
port = 7860
"""

AWS = """
[gpu.main]
provider = "aws"
[gpu.main.aws]
region = "{region}"
endpoint_url = "{url}"
[gpu.main.aws.template]
image_id = "ami-12c6146b"
instance_type = "g5.xlarge"
subnet_id = "{subnet}"
security_group_ids = ["{group}"]
root_volume_gb = 150
[[gpu.main.service]]
command = ["run"]
port = 7860
"""


@pytest.fixture
def file(configure: Configure, ecs: FakeEcs) -> Path:
    return configure(ALIYUN.format(endpoint=ecs.endpoint))


def instance_of(file: Path) -> str:
    gpu = load_config(str(file), env={}).gpu["main"]
    return gpu.settings.instance_id


def stop(cloud: WholeCloud, instance_id: str) -> None:
    """The instance is stopped, whatever it was about to do."""
    instance = cloud.instances[instance_id]
    instance.turn += 1
    instance.status = "Stopped"


# Creating


def test_what_is_created(run: Run, ecs: FakeEcs, file: Path, deployment: str) -> None:
    before = file.read_text()
    done = run("provision", "create", "--yes", QWENCTL_NODE_SECRET=SECRET)
    assert (done.returncode, done.stderr) == (0, "")
    [(id_, instance)] = ecs.cloud.instances.items()
    assert instance.tags == {"qwenctl:deployment": deployment, "qwenctl:gpu": "main"}
    [sent] = ecs.calls_of("RunInstances")
    assert (sent["HttpTokens"], sent["RamRoleName"]) == ("required", "qwenctl-node")
    user_data = base64.b64decode(sent["UserData"]).decode()
    assert "qwenctl-node" in user_data
    assert SECRET not in user_data
    line = f'[gpu.main.aliyun]   # the cloud\ninstance_id = "{id_}"\n'
    assert file.read_text() == before.replace("[gpu.main.aliyun]   # the cloud\n", line)
    assert id_ in done.stdout
    assert "node secret" in done.stdout  # it is left to do
    again = run("provision", "create", "--yes")
    assert (again.returncode, id_ in again.stderr) == (ExitCode.USAGE, True)
    assert len(ecs.cloud.instances) == 1


def test_it_is_said_that_nobody_stops_it_and_what_does(run: Run, ecs: FakeEcs, file: Path) -> None:
    told = "Nobody will stop it until `qwenctl serve` is started anew, or you say `qwenctl down`."
    assert "nobody stops it until a proxy runs" in run("provision", "create", "--help").stdout
    assert told.replace(" will ", " would ") in run("provision", "create", "--dry-run").stdout
    done = run("provision", "create", "--yes", QWENCTL_NODE_SECRET=SECRET)
    first, *left = done.stdout.splitlines()
    assert first.endswith("it is billed while it runs, and no proxy stops it yet.")
    [serve] = [line for line in left if "restart `qwenctl serve`" in line]
    assert "until then nobody stops the instance, but for `qwenctl down`" in serve
    assert serve.endswith(
        "it also stops itself when no proxy is heard, once the node secret is there"
    )
    down = run("down")
    assert (down.returncode, down.stdout) == (0, "main is off\n"), down.stderr
    assert ecs.cloud.instances[instance_of(file)].status == "Stopped"


def test_without_an_agent_nothing_of_one_is_left_to_do(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    text = ALIYUN.format(endpoint=ecs.endpoint)
    configure(text.replace('"aliyun"\n', '"aliyun"\nagent = false\n', 1))
    done = run("provision", "create", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)["left"]
    assert "`qwenctl provision --apply` opens the security group" in left
    assert not any("secret" in line or "makes the role" in line for line in left)


def test_the_image_for_containers_is_described(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    text = ALIYUN.format(endpoint=ecs.endpoint)
    configure(text.replace('command = ["run"]', 'container = { image = "x" }'))
    told = "an image with Docker and nvidia-container-toolkit"
    assert told in run("provision", "create", "--dry-run").stdout
    done = run("provision", "create", "--yes", "--json")
    assert any(told in line for line in json.loads(done.stdout)["left"])


def test_the_secret_goes_along_on_request(run: Run, ecs: FakeEcs, file: Path) -> None:
    done = run(
        "provision", "create", "--yes", "--with-secret", "--json", QWENCTL_NODE_SECRET=SECRET
    )
    assert done.returncode == 0, done.stderr
    [sent] = ecs.calls_of("RunInstances")
    assert SECRET in base64.b64decode(sent["UserData"]).decode()
    told = json.loads(done.stdout)
    assert (told["instance_id"], told["adopted"]) == (instance_of(file), False)
    assert not any("secret" in line for line in told["left"])
    assert SECRET not in done.stdout


def test_a_dry_run_changes_nothing(run: Run, ecs: FakeEcs, file: Path) -> None:
    before = file.read_text()
    done = run("provision", "create", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "9.9 CNY an hour" in done.stdout
    assert "The cloud would accept it" in done.stdout
    ecs.fail("DescribePrice", "error", code="Forbidden.RAM", status=403)
    told = json.loads(run("provision", "create", "--dry-run", "--json").stdout)
    assert (told["price_per_hour"], told["adopts"]) == (None, None)
    assert "could not be asked" in told["note"]
    assert file.read_text() == before
    assert not ecs.cloud.instances
    ecs.cloud.in_stock = False
    assert run("provision", "create", "--dry-run").returncode == ExitCode.NO_CAPACITY


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "words"),
    [
        ("OperationDenied.NoStock", 403, ExitCode.NO_CAPACITY, "no such machine free"),
        ("QuotaExceed.ElasticQuota", 403, ExitCode.DENIED, "Quota Center"),
        ("Forbidden.RAM", 403, ExitCode.DENIED, "qwenctl permissions aliyun --admin"),
        ("InvalidImageId.NotFound", 404, ExitCode.ERROR, "InvalidImageId.NotFound"),
    ],
)
def test_refusals(
    run: Run,
    ecs: FakeEcs,
    file: Path,
    code: str,
    status: int,
    exit_code: ExitCode,
    words: str,
) -> None:
    ecs.fail("RunInstances", "error", code=code, status=status)
    done = run("provision", "create", "--yes")
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert words in done.stderr
    assert instance_of(file) == ""
    assert run("provision", "create", "--yes").returncode == 0  # once it is mended


def test_nobody_is_there_to_confirm(run: Run, ecs: FakeEcs, file: Path) -> None:
    done = run("provision", "create")
    assert (done.returncode, "--yes" in done.stderr) == (ExitCode.USAGE, True)
    assert not ecs.cloud.instances


@pytest.mark.parametrize(("typed", "made"), [("main", 1), ("yes", 0)])
def test_a_person_types_the_name(
    run: Run, ecs: FakeEcs, file: Path, tmp_path: Path, typed: str, made: int
) -> None:
    theirs, ours = pty.openpty()
    os.write(theirs, f"{typed}\n".encode())
    env = inherited("XDG_", "AWS_", "ALIBABA_") | {
        "HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
        "ALIBABA_CLOUD_ACCESS_KEY_ID": ecs.key.id,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": ecs.key.secret,
    }
    done = subprocess.run(
        [PROGRAM, "provision", "create"],
        cwd=tmp_path,
        env=env,
        stdin=ours,
        capture_output=True,
        text=True,
        timeout=120,
    )
    os.close(theirs)
    os.close(ours)
    assert "9.9 CNY an hour" in done.stderr
    assert done.returncode == (0 if made else ExitCode.USAGE), done.stderr
    assert len(ecs.cloud.instances) == made


def test_what_is_missing_is_named(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    text = ALIYUN.format(endpoint=ecs.endpoint).replace("vswitch_id", "# vswitch_id")
    configure(text)
    done = run("provision", "create", "--yes")
    assert done.returncode == ExitCode.USAGE
    assert "gpu.main.aliyun.template: missing vswitch_id" in done.stderr
    assert ecs.calls == []


def test_what_would_be_billed_while_stopped_is_not_created(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    text = ALIYUN.format(endpoint=ecs.endpoint).replace("ecs.gn7i-c8g1", "ecs.gn5-c8g1")
    configure(text)
    done = run("provision", "create", "--yes")
    assert (done.returncode, "local disks" in done.stderr) == (ExitCode.ERROR, True)
    configure(text.replace("protocol", "keep_charging = true\nprotocol"))
    assert run("provision", "create", "--yes").returncode == 0


def test_a_file_that_cannot_be_edited_costs_nothing(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    text = ALIYUN.format(endpoint=ecs.endpoint).replace("[gpu.main.aliyun] ", "[gpu.'main'.aliyun]")
    configure(text)
    done = run("provision", "create", "--yes")
    assert (done.returncode, "by hand" in done.stderr) == (ExitCode.USAGE, True)
    assert not ecs.cloud.instances


def test_options_in_the_wrong_place_are_not_ignored(run: Run, ecs: FakeEcs, file: Path) -> None:
    done = run("provision", "--gpu", "main", "create", "--yes")
    assert (done.returncode, "go after that word" in done.stderr) == (ExitCode.USAGE, True)
    assert not ecs.cloud.instances
    elsewhere = file.rename(file.with_name("elsewhere.toml"))
    named = run("provision", "--config", str(elsewhere), "create", "--yes")
    assert named.returncode == 0, named.stderr
    assert list(ecs.cloud.instances) == [instance_of(elsewhere)]


# Cut connections


def test_an_instance_whose_answer_was_lost_is_taken_over(
    run: Run, ecs: FakeEcs, file: Path
) -> None:
    ecs.fail("RunInstances", "cut_after")
    done = run("provision", "create", "--yes")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "run the same command again" in done.stderr
    assert instance_of(file) == ""
    again = run("provision", "create", "--yes")
    assert (again.returncode, "Took over" in again.stdout) == (0, True)
    assert list(ecs.cloud.instances) == [instance_of(file)]
    assert ecs.received["RunInstances"] == 1


def test_one_that_the_cloud_does_not_show_yet_is_not_made_twice(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, file: Path
) -> None:
    ecs.fail("RunInstances", "cut_after")
    run("provision", "create", "--yes")
    cloud.blind = 3  # two looks for one with our tags, one for the new one
    again = run("provision", "create", "--yes")
    assert again.returncode == 0, again.stderr
    first, second = ecs.calls_of("RunInstances")
    assert first["ClientToken"] == second["ClientToken"]
    assert list(cloud.instances) == [instance_of(file)]


def test_not_even_when_the_template_was_edited_in_between(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, file: Path
) -> None:
    ecs.fail("RunInstances", "cut_after")
    run("provision", "create", "--yes")
    file.write_text(file.read_text().replace("ubuntu_22_04", "ubuntu_24_04"))
    cloud.blind = 3
    again = run("provision", "create", "--yes")
    assert again.returncode == 0, again.stderr
    assert "Took over" in again.stdout
    assert list(cloud.instances) == [instance_of(file)]


def test_a_call_that_never_arrived_is_made_again(run: Run, ecs: FakeEcs, file: Path) -> None:
    ecs.fail("RunInstances", "cut_before")
    assert run("provision", "create", "--yes").returncode == ExitCode.UNAVAILABLE
    assert not ecs.cloud.instances
    done = run("provision", "create", "--yes")
    assert (done.returncode, "Created" in done.stdout) == (0, True)


def test_several_with_our_tags_need_a_person(
    run: Run, cloud: WholeCloud, file: Path, deployment: str
) -> None:
    tags = {"qwenctl:deployment": deployment, "qwenctl:gpu": "main"}
    for id_ in ("i-bp1a", "i-bp1b"):
        cloud.add(id_, tags=tags)
    cloud.add("i-bp1other", tags={**tags, "qwenctl:gpu": "other"})
    done = run("provision", "create", "--yes")
    assert (done.returncode, "i-bp1a, i-bp1b;" in done.stderr) == (ExitCode.ERROR, True)


def test_a_token_whose_instance_is_gone_makes_none(ecs: FakeEcs) -> None:
    """The cloud gives the same answer for a token after the instance has been released."""
    template = AliyunTemplate(
        image_id="u", instance_type="ecs.gn7i", vswitch_id="vsw-1", security_group_id="sg-1"
    )
    api = Ecs(config_for(ecs), credentials_of(ecs.key))

    def maker(**changes: Any) -> AliyunCreator:
        order = LaunchRequest(
            **{"deployment": "d", "gpu": "g", "generation": 1, "user_data": "", **changes}
        )
        return AliyunCreator(api, template, order)

    made, adopted = create(maker())
    assert (adopted, list(ecs.cloud.instances)) == (False, [made.id])
    del ecs.cloud.instances[made.id]
    with pytest.raises(UserError, match=f"{made.id}.*generation = 2"):
        create(maker(), patience=0)
    with pytest.raises(UserError, match=r"other settings.*generation = 2"):
        create(maker(user_data="other"), patience=0)
    assert not ecs.cloud.instances
    fresh, _ = create(maker(generation=2))
    assert list(ecs.cloud.instances) == [fresh.id] != [made.id]


# Releasing


def test_release_and_create_again(run: Run, cloud: WholeCloud, file: Path) -> None:
    assert run("provision", "create", "--yes").returncode == 0
    first = instance_of(file)
    running = run("provision", "release", "--yes")
    assert (running.returncode, "qwenctl down" in running.stderr) == (ExitCode.ERROR, True)
    stop(cloud, first)
    assert "Would delete" in run("provision", "release", "--dry-run").stdout
    assert list(cloud.instances) == [first]
    assert run("provision", "release").returncode == ExitCode.USAGE  # nobody confirms
    done = run("provision", "release", "--yes")
    assert (done.returncode, f"Deleted {first}" in done.stdout) == (0, True), done.stderr
    assert not cloud.instances
    assert instance_of(file) == ""
    assert load_config(str(file), env={}).gpu["main"].settings.template.generation == 2
    assert run("provision", "release", "--yes").returncode == ExitCode.USAGE  # there is none
    assert run("provision", "create", "--yes").returncode == 0
    assert list(cloud.instances) == [instance_of(file)] != [first]


def test_a_running_one_is_released_by_force(run: Run, cloud: WholeCloud, file: Path) -> None:
    run("provision", "create", "--yes")
    done = run("provision", "release", "--yes", "--force", "--json")
    assert (done.returncode, json.loads(done.stdout)["gone"]) == (0, False)
    assert not cloud.instances


def test_one_that_somebody_needs_is_kept(
    run: Run, cloud: WholeCloud, file: Path, client: redis.Redis, deployment: str
) -> None:
    store = Store(client, deployment)
    store.pin("main", "pin:cli", 600, reason="a talk", actor="ann")
    run("provision", "create", "--yes")
    stop(cloud, instance_of(file))
    done = run("provision", "release", "--yes")
    assert (done.returncode, done.stdout) == (ExitCode.ERROR, "")
    assert "somebody needs gpu.main (pin" in done.stderr
    assert len(cloud.instances) == 1
    store.release("main", actor="ann")
    assert run("provision", "release", "--yes").returncode == 0
    assert not cloud.instances
    assert store.snapshot("main").blocks == ()


def test_what_is_not_ours_is_never_released(run: Run, cloud: WholeCloud, file: Path) -> None:
    cloud.add("i-bp1theirs", tags={"qwenctl:gpu": "main"})
    table = '[gpu.main.aliyun]   # the cloud\ninstance_id = "i-bp1theirs"\n'
    file.write_text(file.read_text().replace("[gpu.main.aliyun]   # the cloud\n", table))
    done = run("provision", "release", "--yes", "--force")
    assert (done.returncode, "does not carry the tags" in done.stderr) == (ExitCode.ERROR, True)
    assert list(cloud.instances) == ["i-bp1theirs"]
    assert instance_of(file) == "i-bp1theirs"


def test_a_release_whose_answer_was_lost(run: Run, ecs: FakeEcs, file: Path) -> None:
    run("provision", "create", "--yes")
    ecs.fail("DeleteInstance", "cut_after")
    done = run("provision", "release", "--yes", "--force")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert instance_of(file) != ""
    again = run("provision", "release", "--yes")
    assert (again.returncode, "gone already" in again.stdout) == (0, True)
    assert instance_of(file) == ""


# AWS


@pytest.fixture
def place(moto: MotoCloud) -> dict[str, str]:
    client = moto.client()
    vpc = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = client.create_subnet(
        VpcId=vpc, CidrBlock="10.0.1.0/24", AvailabilityZone=f"{REGION}a"
    )["Subnet"]["SubnetId"]
    group = client.create_security_group(GroupName="gpu", Description="of a test", VpcId=vpc)
    return {"subnet": subnet, "group": group["GroupId"], "region": REGION}


@pytest.fixture
def aws_file(configure: Configure, ec2: FaultProxy, place: dict[str, str]) -> Path:
    return configure(AWS.format(url=ec2.url, **place))


def described(moto: MotoCloud, id_: str) -> Any:
    return moto.client().describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]


def ours(moto: MotoCloud, deployment: str) -> list[str]:
    """The instances with the tag of this test's deployment, terminated ones aside."""
    answer = moto.client().describe_instances(
        Filters=[{"Name": "tag:qwenctl:deployment", "Values": [deployment]}]
    )
    found = [one for each in answer["Reservations"] for one in each["Instances"]]
    return [one["InstanceId"] for one in found if one["State"]["Name"] != "terminated"]


def test_aws_create_and_release(
    run: Run, moto: MotoCloud, ec2: FaultProxy, aws_file: Path, place: dict[str, str]
) -> None:
    dry = run("provision", "create", "--dry-run")
    assert (dry.returncode, "no on-demand prices" in dry.stdout) == (0, True), dry.stderr
    assert ec2.accepted("RunInstances") == 0
    done = run("provision", "create", "--yes")
    assert done.returncode == 0, done.stderr
    id_ = instance_of(aws_file)
    made = described(moto, id_)
    assert (made["InstanceType"], made["SubnetId"]) == ("g5.xlarge", place["subnet"])
    assert made["MetadataOptions"]["HttpTokens"] == "required"
    assert {"Key": "qwenctl:gpu", "Value": "main"} in made["Tags"]
    [disk] = moto.client().describe_volumes(
        Filters=[{"Name": "attachment.instance-id", "Values": [id_]}]
    )["Volumes"]
    assert (disk["Size"], disk["VolumeType"]) == (150, "gp3")
    behavior = moto.client().describe_instance_attribute(
        InstanceId=id_, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert behavior["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    assert run("provision", "release", "--yes").returncode == ExitCode.ERROR  # it runs
    moto.happen(id_, "stopped")
    assert "Would delete" in run("provision", "release", "--dry-run").stdout
    assert run("provision", "release", "--yes").returncode == 0
    assert described(moto, id_)["State"]["Name"] == "terminated"
    assert instance_of(aws_file) == ""


def test_aws_answer_lost(
    run: Run, moto: MotoCloud, ec2: FaultProxy, aws_file: Path, deployment: str
) -> None:
    ec2.add(Fault.cut_after("RunInstances", 1))
    done = run("provision", "create", "--yes")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert instance_of(aws_file) == ""
    again = run("provision", "create", "--yes")
    assert (again.returncode, "Took over" in again.stdout) == (0, True), again.stderr
    assert ours(moto, deployment) == [instance_of(aws_file)]
    assert len(ec2.calls("RunInstances")) == 1


def test_aws_instance_that_ends_at_once(
    run: Run, moto: MotoCloud, ec2: FaultProxy, aws_file: Path
) -> None:
    """EC2 accepts and then terminates, such as for a disk that cannot be decrypted; and it answers
    so to a client token whose instance somebody has terminated."""
    id_ = moto.new_instance(moto.client(), state="terminated")
    moto.happen(id_, "terminated", "Client.InternalError")
    answer = (
        "<RunInstancesResponse><requestId>r-1</requestId><instancesSet><item>"
        f"<instanceId>{id_}</instanceId></item></instancesSet></RunInstancesResponse>"
    )
    ec2.add(Fault.error(Answered(200, answer.encode()), "RunInstances"))
    done = run("provision", "create", "--yes")
    assert (done.returncode, done.stdout) == (ExitCode.ERROR, "")
    assert f"{id_} was created and is gone again" in done.stderr
    assert "KMS key" in done.stderr
    assert "generation = 2" in done.stderr
    assert instance_of(aws_file) == ""


def test_aws_spot_price(
    run: Run, ec2: FaultProxy, configure: Configure, place: dict[str, str]
) -> None:
    text = AWS.format(url=ec2.url, **place)
    configure(text.replace("root_volume_gb", 'market = "spot"\nroot_volume_gb'))
    told = json.loads(run("provision", "create", "--dry-run", "--json").stdout)
    assert (told["market"], told["currency"]) == ("spot", "USD")
    assert told["price_per_hour"] == 0.00001  # moto's
    assert f"{REGION}a" in told["note"]


def test_aws_spot_request_is_cancelled_first(
    run: Run, moto: MotoCloud, ec2: FaultProxy, aws_file: Path, deployment: str
) -> None:
    assert run("provision", "create", "--yes").returncode == 0
    id_ = instance_of(aws_file)
    tags = "".join(
        f"<item><key>{key}</key><value>{value}</value></item>"
        for key, value in (("qwenctl:deployment", deployment), ("qwenctl:gpu", "main"))
    )
    # moto makes no requests of spot instances.
    answer = (
        "<DescribeInstancesResponse><requestId>r-1</requestId><reservationSet><item><instancesSet><item>"
        f"<instanceId>{id_}</instanceId><instanceState><code>80</code><name>stopped</name>"
        f"</instanceState><spotInstanceRequestId>sir-0123</spotInstanceRequestId><tagSet>{tags}"
        "</tagSet></item></instancesSet></item></reservationSet></DescribeInstancesResponse>"
    )
    ec2.forget()
    ec2.add(Fault.error(Answered(200, answer.encode()), "DescribeInstances"))
    cancelled = (
        "<CancelSpotInstanceRequestsResponse><requestId>r-1</requestId><spotInstanceRequestSet><item><state>cancelled</state>"
        "</item></spotInstanceRequestSet></CancelSpotInstanceRequestsResponse>"
    )
    ec2.add(Fault.error(Answered(200, cancelled.encode()), "CancelSpotInstanceRequests"))
    done = run("provision", "release", "--yes")
    assert done.returncode == 0, done.stderr
    changes = [call.action for call in ec2.calls() if not call.action.startswith("Describe")]
    assert changes == ["CancelSpotInstanceRequests", "TerminateInstances"]
    assert described(moto, id_)["State"]["Name"] == "terminated"
