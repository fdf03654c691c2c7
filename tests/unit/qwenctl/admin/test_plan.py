"""What `qwenctl provision` renders is read back by the programs that it is for."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from gpu_node.settings import load_settings
from qwenctl import __version__
from qwenctl.admin.permissions import node_policy
from qwenctl.admin.plan import make_plan, role_commands
from qwenctl.clouds.plan import SECRET_FILE, Plan
from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.config.service import ServiceConfig
from qwenctl.errors import ConfigError

SECRET = "not-for-everyone-0123456789"


def load(
    tmp_path: Path, provider: str = "aliyun", node_url: str = "http://10.0.0.5:8080"
) -> Config:
    place = {
        "aliyun": 'region = "cn-hangzhou"\ninstance_id = "i-bp1abc"',
        "aws": 'region = "us-east-1"\ninstance_id = "i-0123456789abcdef0"',
        "local": "",
    }[provider]
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        f'[proxy]\nnode_urls = ["{node_url}"]\n[gpu.main]\nprovider = "{provider}"\n'
        f"timing = {{ dead_man = 420 }}\n[gpu.main.{provider}]\n{place}\n"
        '[[gpu.main.service]]\ncommand = ["run"]\nport = 8000\n'
    )
    return load_config(str(path), env={})


@pytest.fixture(params=["aliyun", "aws"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    return make_plan(load(tmp_path, request.param), "main")


def test_only_the_service_port_only_from_the_proxy(plan: Plan) -> None:
    [rule] = plan.rules
    assert (rule.port, rule.source) == (8000, "10.0.0.5/32")


def test_user_data_is_yaml_and_its_files_are_those_of_the_plan(plan: Plan) -> None:
    text = plan.user_data()
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    assert {f["path"]: f["content"] for f in data["write_files"]} == {
        file.path: file.content for file in plan.files()
    }
    assert data["runcmd"] == plan.commands()
    assert any(f"=={__version__}" in command for command in data["runcmd"])


def test_the_agent_accepts_its_settings(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(plan.settings)
    settings = load_settings(str(file), {})
    assert settings.proxy_urls == ("http://10.0.0.5:8080",)
    assert (settings.gpu, settings.dead_man) == ("main", 420)
    assert settings.node_secret_file == SECRET_FILE
    assert bool(settings.power_off_command) == (plan.cloud == "aliyun")
    assert settings.cloud == plan.cloud


def test_only_alibaba_cloud_needs_a_role(plan: Plan) -> None:
    commands = [shlex.split(line) for line in role_commands(plan)]
    if plan.cloud == "aws":
        assert commands == []
        return
    assert [words[:3] for words in commands] == [
        ["aliyun", "ram", "CreateRole"],
        ["aliyun", "ram", "CreatePolicy"],
        ["aliyun", "ram", "AttachPolicyToRole"],
        ["aliyun", "ecs", "AttachInstanceRamRole"],
    ]
    document = commands[1][commands[1].index("--PolicyDocument") + 1]
    assert plan.instance is not None
    assert json.loads(document) == node_policy([plan.instance])


def test_the_agent_is_installed_by_its_own_command(plan: Plan) -> None:
    package, install = plan.commands()
    assert f"'{plan.package}'" in package
    assert shlex.split(install)[:4] == [
        "/opt/qwenctl/bin/qwenctl-node",
        "install",
        "--config",
        "/etc/qwenctl/node.toml",
    ]
    assert ["--user", plan.user, "--runs", plan.runs] == shlex.split(install)[4:]


def test_for_containers_it_looks_for_docker_last(tmp_path: Path) -> None:
    config = load(tmp_path, "aws")
    assert not any("nvidia-ctk" in command for command in make_plan(config, "main").commands())
    service = ServiceConfig.model_validate({"container": {"image": "x"}})
    gpu = config.gpu["main"].model_copy(update={"service": (service,)})
    plan = make_plan(config.model_copy(update={"gpu": {"main": gpu}}), "main")
    *_, install, look = plan.commands()
    assert "nvidia-ctk" in look
    assert install in look  # what to run again
    assert yaml.safe_load(plan.user_data())["runcmd"][-1] == look


def test_without_an_agent_no_role_is_made(tmp_path: Path) -> None:
    config = load(tmp_path, "aliyun")
    gpu = config.gpu["main"].model_copy(update={"agent": False})
    plan = make_plan(config.model_copy(update={"gpu": {"main": gpu}}), "main")
    assert role_commands(plan) == []
    assert not plan.agent


def test_the_secret_is_nowhere_unless_asked_for(plan: Plan) -> None:
    for text in (plan.user_data(), plan.script()):
        assert SECRET not in text
        assert SECRET_FILE in text
    files = yaml.safe_load(plan.user_data(SECRET))["write_files"]
    [secret] = [file for file in files if file["path"] == SECRET_FILE]
    assert secret == {"path": SECRET_FILE, "permissions": "0600", "content": SECRET + "\n"}


def test_the_script_writes_the_same_files(plan: Plan, tmp_path: Path) -> None:
    def moved(text: str) -> str:
        return text.replace("/etc/", f"{tmp_path}/etc/")

    script = plan.script(SECRET)
    for command in plan.commands():  # those need root and an instance
        assert f"\n{command}\n" in script
        script = script.replace(f"\n{command}\n", "\n:\n")
    done = subprocess.run(["/bin/sh"], input=moved(script), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for file in plan.files(SECRET):
        written = Path(moved(file.path))
        assert written.read_text() == moved(file.content)
        assert f"{written.stat().st_mode & 0o777:04o}" == file.mode


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["0.0.0.0/0"], "whole internet"),
        (["::/0"], "whole internet"),
        (["gpu.example.com"], "neither a network"),
        (["10.0.0.5/8"], "neither a network"),
    ],
)
def test_careless_sources_are_refused(tmp_path: Path, sources: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(load(tmp_path), "main", sources=sources)


def test_a_security_group_can_be_the_source(tmp_path: Path) -> None:
    [rule] = make_plan(load(tmp_path), "main", sources=["sg-bp1abcd"]).rules
    assert rule.is_group


def test_a_node_url_by_name_gives_no_rule(tmp_path: Path) -> None:
    assert make_plan(load(tmp_path, node_url="https://gpu.example.com"), "main").rules == ()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:1"]
)
def test_a_node_url_that_means_the_node_itself_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"nodes cannot reach .*set proxy\.node_urls"):
        make_plan(load(tmp_path, node_url=url), "main")


def test_the_local_provider_needs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing provisioned"):
        make_plan(load(tmp_path, "local"), "main")


@pytest.mark.parametrize("argument", [{"user": "root; reboot"}, {"package": "$(reboot)"}])
def test_arguments_that_are_no_names_are_refused(tmp_path: Path, argument: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        make_plan(load(tmp_path), "main", **argument)  # type: ignore[arg-type]
