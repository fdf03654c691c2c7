"""`qwenctl config` and `init`, and what every command says of a bad config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomllib

from qwenctl.errors import ExitCode
from tests.integration.qwenctl.cli.program import Run, fails
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu = [", ["not valid TOML", "qwenctl.toml"]),
        ('[gpu.main]\nidle_timeout = "soon"', ["gpu.main.idle_timeout", "'soon'"]),
        ("[gpu.main]\nprice_per_hour = 'much'", ["gpu.main.price_per_hour", "number"]),
        ("[gpu.main]\nidel_timeout = 3", ["unknown key", "'idle_timeout'"]),
        ("[gpu.Main]", ["gpu"]),
        ('[proxy]\nlisten = 5\n', ["proxy.listen"]),
        ('[[gpu.main.service]]\ncommand = "vllm"', ["command", "should be a list"]),
        ("gpu = 3", ["gpu", "should be a table"]),
        ("\xff", []),
        ("", ["no GPU is configured: add", "qwenctl init"]),
        ('redis_url = "http://x"\n[gpu.main]', ["redis_url", "http"]),
        ('state_dir = "/dev/null/x"\n[gpu.main]', ["/dev/null/x", "QWENCTL_STATE_DIR"]),
        ("[gpu.a]\n[gpu.b]", []),
    ],
)  # fmt: skip
def test_bad_config(run: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "qwenctl.toml").write_text(text, encoding="latin-1")
    if text == "[gpu.a]\n[gpu.b]":
        fails(run("logs"), ExitCode.USAGE, "--gpu", "a, b")
    else:
        fails(run("status"), ExitCode.USAGE, *words)


def test_every_mistake_is_told_on_its_own_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("colour = 1\n[proxy]\nlisten = 5\n")
    done = run("config", "validate")
    assert done.returncode == ExitCode.USAGE
    assert len(done.stderr.splitlines()) == 2
    told = json.loads(run("config", "validate", "--json").stdout)
    assert (told["valid"], len(told["errors"])) == (False, 2)


def test_a_config_that_is_not_there(run: Run) -> None:
    fails(run("status", "-c", "nowhere.toml"), ExitCode.USAGE, "nowhere.toml", "qwenctl init")
    fails(run("-c", "nowhere.toml", "status"), ExitCode.USAGE, "nowhere.toml")
    fails(run("config", "path"), ExitCode.USAGE, "qwenctl init")
    fails(run("config", "validate"), ExitCode.USAGE, "no config file", "qwenctl init")


def test_an_unknown_gpu(run: Run, config: Path) -> None:
    fails(run("why", "--gpu", "other"), ExitCode.USAGE, "'other'", "main")


def test_path_validate_and_schema(run: Run, config: Path) -> None:
    assert run("config", "path").stdout.strip() == str(config)
    assert json.loads(run("config", "path", "--json").stdout) == {"file": str(config)}
    done = run("config", "validate")
    assert (done.returncode, "ok, 1 GPU: main" in done.stdout) == (0, True)
    assert "warning: gpu.main has no service" in done.stderr
    told = json.loads(run("config", "validate", "--json").stdout)
    assert (told["valid"], len(told["warnings"])) == (True, 1)
    schema = json.loads(run("config", "schema").stdout)
    assert {"gpu", "proxy", "access"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[proxy]\nlisten = "8080"\n[gpu.main]', ["proxy.listen", "address:port"]),
        ('[proxy]\nlisten = "127.0.0.1:99999"\n[gpu.main]', ["proxy.listen", "address:port"]),
        ('[proxy]\nlisten = "0.0.0.0:8080"\n[gpu.main]', ["0.0.0.0", "access control is off"]),
        ('[gpu.main]\nprovider = "mars"', ["gpu.main.provider", "'mars'"]),
        ('[proxy]\nlisten = "127.0.0.1:8080"', ["no GPU is configured"]),
        ('node_secret_file = "nowhere"\n[gpu.main]', ["node_secret_file", "nowhere"]),
        ('redis_url = "foo"\n[gpu.main]', ["redis_url", "use redis://"]),
        ('[proxy]\nnode_urls = ["gpu.example.com"]\n[gpu.main]', ["node_urls", "http://"]),
        ('[proxy]\npublic_url = "gpu.example.com"\n[gpu.main]', ["public_url", "http://"]),
        ('[gpu.main.aliyun]\nendpoint = "http://127.0.0.1:18901"', ["endpoint", "host:port"]),
        (
            'gpu.a.hosts = ["a"]\n[[gpu.a.service]]\ncommand = ["a"]\n[[gpu.b.service]]\ncommand = ["b"]',
            ["gpu.a", "gpu.b", "port 7860", "this machine"],
        ),
    ],
)
def test_validate_refuses_what_serve_refuses(
    run: Run, tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "qwenctl.toml").write_text(text)
    fails(run("config", "validate"), ExitCode.USAGE, *words)
    assert not (tmp_path / "state").exists()  # it looks and writes nothing


EMPTY_PASSWORD = (
    "$argon2id$v=19$m=64,t=1,p=1$DbyXgK/Cbu3ZZzlCEukF7A$2okx/apiRI9Ubt8NTZwZVJtM2f6KDEjo3vz2f0xoZUc"
)


@pytest.mark.parametrize(
    "value",
    [
        "$argon2id$REPLACE",
        "$argon2id$v=19$m=64,t=1,p=1$7a+EHq3jXqfetWgvF7RZiw$TN1xQvdT7",
        EMPTY_PASSWORD,
    ],
)
def test_a_password_hash_that_lets_nobody_in_or_everybody(
    run: Run, tmp_path: Path, value: str
) -> None:
    """That of the examples, one that was not copied to its end, and that of the empty password."""
    text = f'[access]\nmode = "password"\npassword_hash = "{value}"\n[gpu.main]\n'
    (tmp_path / "qwenctl.toml").write_text(text)
    for command in (("config", "validate"), ("serve", "--listen", "127.0.0.1:0")):
        done = run(*command)
        fails(done, ExitCode.USAGE, "access.password_hash", "`qwenctl access hash-password`")
        assert value not in done.stderr


def test_validate_tells_of_gpus_that_no_visitor_reaches(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text('[gpu.a]\n[gpu.b]\n[gpu.c]\nhosts = ["c.example.com"]\n')
    done = run("config", "validate")
    [line] = [line for line in done.stderr.splitlines() if "hosts" in line]
    assert "gpu.a" in line
    assert "gpu.b" in line
    assert "gpu.c" not in line
    assert done.returncode == 0
    path.write_text('[gpu.a]\ntier = "speed"\n[gpu.b]\ntier = "quality"\n')
    assert "hosts" not in run("config", "validate").stderr


def test_validate_tells_several_mistakes_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text('[proxy]\nlisten = "x"\n[gpu.a]\nprovider = "mars"\n')
    assert len(run("config", "validate").stderr.splitlines()) == 2


def test_listening_to_others_needs_a_word(run: Run, tmp_path: Path, config: Path) -> None:
    fails(run("serve", "--listen", "0.0.0.0:0"), ExitCode.USAGE, "access control is off")
    fails(run("serve", "--listen", "here"), ExitCode.USAGE, "address:port")
    config.write_text('[proxy]\nlisten = "0.0.0.0:1"\nallow_anonymous = true\n[gpu.main]\n')
    assert run("config", "validate").returncode == 0
    config.write_text('[proxy]\nlisten = "[::1]:1"\n[gpu.main]\n')
    assert run("config", "validate").returncode == 0


def test_show_prints_toml_that_says_the_same(run: Run, config: Path) -> None:
    shown = tomllib.loads(run("config", "show").stdout)
    assert shown == json.loads(run("config", "show", "--json").stdout)
    assert shown["gpu"]["main"]["idle_timeout"] == 600.0


def test_init_writes_a_file_that_is_valid_and_refuses_to_overwrite(
    run: Run, tmp_path: Path
) -> None:
    done = run("init")
    path = tmp_path / "config" / "qwenctl" / "qwenctl.toml"
    assert done.returncode == 0
    assert str(path) in done.stdout
    assert "[[gpu.main.service]]" in done.stdout  # what to edit
    valid = run("config", "validate")
    assert "ok, 1 GPU: main" in valid.stdout
    assert valid.stderr == ""
    path.write_text("# mine\n")
    # With --config it is that file, before the command or after it, and no other one.
    assert run("-c", "other.toml", "init", "--force").returncode == 0
    assert run("init", "-c", "third.toml").returncode == 0
    assert (tmp_path / "other.toml").exists()
    assert (tmp_path / "third.toml").exists()
    fails(run("init"), ExitCode.USAGE, "exists", "--force")
    assert path.read_text() == "# mine\n"
    told = json.loads(run("init", "--force", "--json").stdout)
    assert told == {"file": str(path), "gpu": "main"}
    assert run("init", "--here", "--gpu", "big").returncode == 0
    assert "big" in run("config", "validate").stdout  # ./ goes first
    fails(run("init", "--provider", "mars"), ExitCode.USAGE, "mars", "local")


@pytest.mark.parametrize(
    ("provider", "missing", "instance"),
    [
        ("aliyun", {"region": "cn-hangzhou"}, "i-bp1fake"),
        ("aws", {}, "i-0123456789abcdef0"),  # boto3 may find a region elsewhere
    ],
)
def test_init_for_a_cloud_says_what_to_fill_in(
    run: Run, tmp_path: Path, provider: str, missing: dict[str, str], instance: str
) -> None:
    done = run("init", "--here", "--gpu", "big", "--provider", provider)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"qwenctl import {provider}" in done.stdout
    path = tmp_path / "qwenctl.toml"
    for key, value in {**missing, "instance_id": instance}.items():
        fails(run("config", "validate"), ExitCode.USAGE, f"gpu.big.{provider}.{key} is ")
        path.write_text(path.read_text().replace(f'{key} = ""', f'{key} = "{value}"'))
    done = run("config", "validate")
    assert done.returncode == 0, done.stderr
    [warning] = done.stderr.splitlines()  # `node_urls` is to be filled in, too
    assert warning.startswith("warning: proxy.node_urls is not set")
    # The template that is only commented out is valid, too.
    lines = path.read_text().splitlines()
    begin = lines.index(f"# [gpu.big.{provider}.template]")
    end = lines.index("", begin)
    lines[begin:end] = [line.removeprefix("# ") for line in lines[begin:end]]
    path.write_text("\n".join(lines))
    template = tomllib.loads(path.read_text())["gpu"]["big"][provider]["template"]
    assert {"image_id", "instance_type"} <= set(template)
    assert run("config", "validate").returncode == 0


def test_no_command_prints_a_secret(run: Run, tmp_path: Path) -> None:
    port = free_port()
    digest = "ab" * 32
    with ValkeyServer(port=port, requirepass="s3cr3t-redis"):
        (tmp_path / "qwenctl.toml").write_text(
            f'redis_url = "redis://:s3cr3t-redis@127.0.0.1:{port}/0"\n'
            'node_secret = "s3cr3t-node"\n'
            '[proxy]\npublic_url = "https://me:s3cr3t-url@gpu.example.com/?token=s3cr3t-query"\n'
            '[access]\nmode = "password"\npassword_hash = "$argon2id$v=19$m=64,t=1,p=1$'
            's3cr3thash7a+EHq3jXqfA$TN1xQvdT71j9yA/7Tps69kCTTUV1/+K8SCa8GXEGWS4"\n'
            f'[[access.keys]]\nname = "laptop"\nhash = "sha256:{digest}"\n'
            "[gpu.main]\n[[gpu.main.service]]\n"
            'command = ["vllm", "--api-key", "s3cr3t-arg", "--hf-token=s3cr3t-arg2", "--port", "1"]\n'
            'env = { PLAIN = "s3cr3t-env" }\n'
            '[[gpu.main.service]]\nname = "box"\nport = 2\n'
            '[gpu.main.service.container]\nimage = "vllm/vllm-openai:v0.11.0"\n'
            'entrypoint = ["vllm", "serve", "--api-key", "s3cr3t-arg3"]\n'
        )
        outputs = [
            run("config", "show"),
            run("config", "show", "--json"),
            run("config", "validate", "--json"),
            run("status"),
            run("why", "--json"),
            run("events", "--json"),
        ]
    for done in outputs:
        assert done.returncode == 0, done.stderr
        assert "s3cr3t" not in done.stdout + done.stderr
        assert digest not in done.stdout
    assert "--port" in outputs[0].stdout  # what is no secret is still there
    assert "laptop" in outputs[0].stdout


def test_status_prints_no_secret(run: Run, config: Path) -> None:
    done = run("status", "--json", QWENCTL_NODE_SECRET="s3cr3t")
    assert done.returncode == 0
    assert "s3cr3t" not in done.stdout
