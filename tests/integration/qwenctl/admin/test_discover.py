"""`qwenctl import` writes a section that the rest of qwenctl accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenctl.config.loading import load_config
from qwenctl.errors import ExitCode
from tests.integration.qwenctl.admin.commands import Run, WholeCloud, spot_answers
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import INSTANCE
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import REGION, MotoCloud


def aliyun(run: Run, ecs: FakeEcs, *more: str, id_: str = INSTANCE, **env: str) -> Any:
    place = ("--region", "cn-hangzhou", "--endpoint", ecs.endpoint, "--protocol", "http")
    return run("import", "aliyun", id_, *place, *more, **env)


def aws(run: Run, url: str, id_: str, *more: str) -> Any:
    return run("import", "aws", id_, "--region", REGION, "--endpoint-url", url, *more)


def test_aliyun_section(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    ecs.cloud.add(eip="47.96.0.9")
    done = aliyun(run, ecs, "--name", "small")
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "shown.toml"
    path.write_text(done.stdout)
    gpu = load_config(str(path), env={}).gpu["small"]
    assert gpu.provider == "aliyun"
    assert (gpu.settings.region, gpu.settings.instance_id) == ("cn-hangzhou", INSTANCE)
    assert gpu.price_per_hour == 9.9  # the instance type alone, without the disk
    for words in ("ecs.gn7i-c8g1.2xlarge", "pay-as-you-go", "192.168.7.10", "47.96.0.9", "CNY"):
        assert words in done.stdout


def test_aliyun_spot_price(run: Run, ecs: FakeEcs) -> None:
    ecs.cloud.add(spot_strategy="SpotAsPriceGo")
    found = json.loads(aliyun(run, ecs, "--json").stdout)
    assert (found["market"], found["price"], found["currency"]) == ("spot", 1.98, "CNY")
    assert found["file"] is None


def test_aliyun_without_a_price(run: Run, ecs: FakeEcs) -> None:
    ecs.cloud.add()
    ecs.fail("DescribePrice", "error", code="Forbidden.RAM", status=403)
    done = aliyun(run, ecs)
    assert done.returncode == 0
    assert "the price could not be asked" in done.stderr
    assert "\nprice_per_hour" not in done.stdout


@pytest.mark.parametrize("fields", [{"charge_type": "PrePaid"}, {"local_disks": 1}])
def test_aliyun_instances_that_go_on_costing_are_warned_of(
    run: Run, ecs: FakeEcs, fields: dict[str, Any]
) -> None:
    ecs.cloud.add(**fields)
    done = aliyun(run, ecs)
    assert done.returncode == 0
    assert "STOPPING THIS INSTANCE DOES NOT END ITS BILLING" in done.stderr
    assert "STOPPING THIS INSTANCE DOES NOT END ITS BILLING" in done.stdout  # and in the file


def test_aws_section(run: Run, moto: MotoCloud, tmp_path: Path) -> None:
    id_ = moto.new_instance(moto.client())
    done = aws(run, moto.url, id_)
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "shown.toml"
    path.write_text(done.stdout)
    gpu = load_config(str(path), env={}).gpu["main"]
    assert (gpu.provider, gpu.aws.region, gpu.aws.instance_id) == ("aws", REGION, id_)
    assert gpu.price_per_hour == 0
    assert "g5.xlarge, on-demand" in done.stdout


def test_aws_shutdown_that_destroys_is_warned_of(run: Run, moto: MotoCloud) -> None:
    id_ = moto.new_instance(moto.client(), InstanceInitiatedShutdownBehavior="terminate")
    assert "A SHUTDOWN FROM INSIDE TERMINATES" in aws(run, moto.url, id_).stderr


@pytest.mark.parametrize(
    ("kind", "behavior", "warned"), [("persistent", "stop", False), ("one-time", "terminate", True)]
)
def test_aws_spot_that_cannot_be_started_again_is_warned_of(
    run: Run, ec2: FaultProxy, kind: str, behavior: str, warned: bool
) -> None:
    for fault in spot_answers("i-0123456789abcdef0", kind, behavior):
        ec2.add(fault)
    done = aws(run, ec2.url, "i-0123456789abcdef0")
    assert "g5.xlarge, spot" in done.stdout
    assert ("CANNOT BE STOPPED AND STARTED" in done.stderr) == warned


# Writing


def test_write_appends_and_refuses_to_overwrite(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    ecs.cloud.add()
    path = tmp_path / "qwenctl.toml"
    path.write_text("# mine\n[proxy]\nhold = 60  # no line end")
    done = aliyun(run, ecs, "--write")
    assert (done.returncode, done.stderr) == (0, "")
    written = path.read_text()
    assert written.startswith("# mine\n[proxy]\nhold = 60  # no line end\n\n# ecs.")
    config = load_config(str(path), env={})
    assert (config.proxy.hold, list(config.gpu)) == (60, ["main"])
    again = aliyun(run, ecs, "--write")
    assert again.returncode == ExitCode.USAGE
    assert "has [gpu.main] already" in again.stderr
    assert path.read_text() == written
    twice = aliyun(run, ecs, "--write", "--name", "second")  # two tables would stop one instance
    assert (twice.returncode, path.read_text()) == (ExitCode.USAGE, written)
    ecs.cloud.add("i-bp1fake0002")
    assert aliyun(run, ecs, "--write", "--name", "second", id_="i-bp1fake0002").returncode == 0
    assert list(load_config(str(path), env={}).gpu) == ["main", "second"]


@pytest.mark.parametrize("region", ["", "cn-hangzhou"])
def test_write_fills_in_what_init_left_empty(
    run: Run, ecs: FakeEcs, tmp_path: Path, region: str
) -> None:
    ecs.cloud.add()
    assert run("init", "--here", "--provider", "aliyun").returncode == 0
    path = tmp_path / "qwenctl.toml"
    path.write_text(path.read_text().replace('region = ""', f'region = "{region}"'))
    before = path.read_text()
    done = aliyun(run, ecs, "--write")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Filled in [gpu.main.aliyun] of ")
    gpu = load_config(str(path), env={}).gpu["main"]
    assert (gpu.settings.region, gpu.settings.instance_id) == ("cn-hangzhou", INSTANCE)
    assert (gpu.aliyun.endpoint, gpu.aliyun.protocol) == (ecs.endpoint, "http")
    assert (gpu.price_per_hour, gpu.workload, len(gpu.service)) == (9.9, "qwen3-vl-webui", 1)
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert [line for line in path.read_text().splitlines() if line.startswith("#")] == comments
    assert "has [gpu.main] already" in aliyun(run, ecs, "--write").stderr


@pytest.mark.parametrize(
    "table",
    [
        'provider = "aliyun"\n[gpu.main.aliyun]\nregion = "cn-beijing"\n',
        'provider = "aws"\n[gpu.main.aliyun]\nregion = ""\n',
        'provider = "aliyun"\n[gpu.main.aliyun]\ninstance_id = "i-bp1fake0009"\n',
    ],
)
def test_write_fills_in_nothing_that_is_set(
    run: Run, ecs: FakeEcs, tmp_path: Path, table: str
) -> None:
    ecs.cloud.add()
    path = tmp_path / "qwenctl.toml"
    path.write_text(f"[gpu.main]\n{table}")
    done = aliyun(run, ecs, "--write")
    assert (done.returncode, path.read_text()) == (ExitCode.USAGE, f"[gpu.main]\n{table}")
    assert "has [gpu.main] already" in done.stderr


def test_write_fills_in_for_aws(run: Run, moto: MotoCloud, tmp_path: Path) -> None:
    id_ = moto.new_instance(moto.client())
    assert run("init", "--here", "--provider", "aws").returncode == 0
    assert aws(run, moto.url, id_, "--write").returncode == 0
    gpu = load_config(str(tmp_path / "qwenctl.toml"), env={}).gpu["main"]
    assert (gpu.aws.region, gpu.aws.instance_id, gpu.price_per_hour) == (REGION, id_, 0)


def test_write_makes_the_file(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    ecs.cloud.add()
    assert aliyun(run, ecs, "--write").returncode == 0
    assert "main" in load_config(str(tmp_path / "qwenctl.toml"), env={}).gpu


def test_a_broken_file_is_left_alone(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    ecs.cloud.add()
    path = tmp_path / "qwenctl.toml"
    path.write_text("gpu = 3\n")
    done = aliyun(run, ecs, "--write")
    assert (done.returncode, path.read_text()) == (ExitCode.USAGE, "gpu = 3\n")


def test_the_file_is_replaced_in_one_step(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    """A disk that is full half-way through leaves no half section: see test_config_edit."""
    ecs.cloud.add()
    path = tmp_path / "qwenctl.toml"
    path.write_text("[proxy]\n")
    with path.open() as reader:
        assert aliyun(run, ecs, "--write").returncode == 0
        assert reader.read() == "[proxy]\n"
    assert "[gpu.main]" in path.read_text()


# Refusals


def test_no_such_instance(run: Run, ecs: FakeEcs, moto: MotoCloud) -> None:
    for done in (aliyun(run, ecs), aws(run, moto.url, "i-0123456789abcdef0")):
        assert (done.returncode, done.stdout) == (ExitCode.ERROR, "")
        assert done.stderr.startswith("error: ")


def test_not_allowed_to_look(run: Run, ecs: FakeEcs, moto: MotoCloud, ec2: FaultProxy) -> None:
    ecs.fail("DescribeInstances", "error", code="Forbidden.RAM", status=403)
    ec2.add(Fault.error(ec2_error("UnauthorizedOperation", "no", 403), "DescribeInstances"))
    for done in (aliyun(run, ecs), aws(run, ec2.url, "i-0123456789abcdef0")):
        assert (done.returncode, done.stdout) == (ExitCode.DENIED, "")
        assert len(done.stderr.splitlines()) == 1


def test_a_cut_connection(run: Run, cloud: WholeCloud, ecs: FakeEcs) -> None:
    cloud.add()
    ecs.fail("DescribeInstances", "cut_before")
    assert aliyun(run, ecs).returncode == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    "arguments",
    [
        ("aliyun", "i-bp1", "--region", "Moon"),
        ("aliyun", "bp1", "--region", "cn-hangzhou"),
        ("aws", "i-xyz", "--region", "us-east-1"),
        ("aws", "i-0123456789abcdef0", "--region", "us-east-1", "--name", "No!"),
        ("aws", "i-0123456789abcdef0", "--region", ""),
        ("aliyun", "i-bp1", "--region", "cn-a", "--endpoint", "10.0.0.9", "--protocol", "http"),
    ],
)
def test_mistyped_arguments(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("import", *arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("aliyun", "i-bp1", "--region", "cn_hangzhou"), ["Alibaba Cloud", "cn-hangzhou"]),
        (("aws", "i-0123456789abcdef0", "--region", "cn-hangzhou"), ["AWS", "us-east-1"]),
        (("aws", "i-bp1fake", "--region", "us-east-1"), ["AWS", "i-0123456789abcdef0"]),
        (
            ("aliyun", "i-bp1", "--region", "cn-a", "--endpoint", "http://127.0.0.1:1"),
            ["--endpoint", "http://127.0.0.1:1", "host:port"],
        ),
        (
            ("aws", "i-0123456789abcdef0", "--region", "us-east-1", "--endpoint-url", "127.0.0.1"),
            ["--endpoint-url", "127.0.0.1", "https://"],
        ),
    ],
)
def test_mistyped_arguments_say_what_is_right(
    run: Run, arguments: tuple[str, ...], words: list[str]
) -> None:
    done = run("import", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (ExitCode.USAGE, 1)
    for word in words:
        assert word in done.stderr


def test_the_untouched_sample_of_init_makes_way(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    """The README has `init` first."""
    ecs.cloud.add()
    file = tmp_path / "own.toml"
    assert run("init", "--config", str(file)).returncode == 0
    done = aliyun(run, ecs, "--write", "--config", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Filled in [gpu.main.aliyun]" in done.stdout
    config = load_config(str(file), env={})
    assert config.gpu["main"].settings.instance_id == INSTANCE
    assert config.gpu["main"].workload == "qwen3-vl-webui"
    assert "node_urls" in file.read_text()


def test_a_sample_that_was_edited_stays(run: Run, ecs: FakeEcs, tmp_path: Path) -> None:
    ecs.cloud.add()
    file = tmp_path / "own.toml"
    assert run("init", "--config", str(file)).returncode == 0
    file.write_text(edited := file.read_text().replace("10m", "20m"))
    done = aliyun(run, ecs, "--write", "--config", str(file))
    assert done.returncode == ExitCode.USAGE
    assert "--name" in done.stderr
    assert file.read_text() == edited
