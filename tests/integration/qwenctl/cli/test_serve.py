"""`qwenctl serve` before it serves, the store it needs, and its access."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from qwenctl.errors import ExitCode
from qwenctl.lib.extras import how_to_install
from tests.integration.qwenctl.cli.program import Run, environment, fails
from tests.support.net import free_port
from tests.support.program import PROGRAM
from tests.support.valkey_server import ValkeyServer


def test_redis_that_does_not_run(run: Run, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "qwenctl.toml").write_text(f'redis_url = "redis://127.0.0.1:{port}"\n[gpu.main]\n')
    fails(run("status"), ExitCode.UNAVAILABLE, f"127.0.0.1:{port}", "cannot be reached")


@pytest.mark.parametrize("login", ["", ":wr0ng-secret@", "nobody:wr0ng-secret@"])
def test_redis_with_another_password(run: Run, tmp_path: Path, login: str) -> None:
    port = free_port()
    with ValkeyServer(port=port, requirepass="r1ght-secret"):
        text = f'redis_url = "redis://{login}127.0.0.1:{port}"\n[gpu.main]\n'
        (tmp_path / "qwenctl.toml").write_text(text)
        done = run("status")
        fails(done, ExitCode.DENIED, "password")
        assert "secret" not in done.stderr
        (tmp_path / "pw").write_text("r1ght-secret\n")
        good = f'redis_url = "redis://127.0.0.1:{port}"\nredis_password_file = "{tmp_path}/pw"\n'
        (tmp_path / "qwenctl.toml").write_text(good + "[gpu.main]\n")
        assert run("status").returncode == 0


def test_the_embedded_server_is_started_at_need(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("[gpu.main]\n")
    done = run("status")
    assert done.returncode == 0, done.stderr
    assert "main's state is not known" in done.stdout
    assert (tmp_path / "state" / "qwenctl" / "valkey").is_dir()


@pytest.mark.parametrize(
    ("provider", "module", "extra"),
    [("aws", "botocore", "aws"), ("aliyun", "aliyunsdkcore", "aliyun")],
)
def test_serve_names_a_missing_extra(
    run: Run, tmp_path: Path, provider: str, module: str, extra: str
) -> None:
    (tmp_path / "none").mkdir()
    text = f"raise ModuleNotFoundError('no {module}', name='{module}')\n"
    (tmp_path / "none" / f"{module}.py").write_text(text)
    regions = {"aws": "us-east-1", "aliyun": "cn-hangzhou"}
    (tmp_path / "qwenctl.toml").write_text(
        '[proxy]\nlisten = "127.0.0.1:0"\nnode_urls = ["http://10.0.0.1:8080"]\n'
        f'[gpu.main]\nprovider = "{provider}"\n'
        f'[gpu.main.{provider}]\nregion = "{regions[provider]}"\n'
        'instance_id = "i-0123456789abcdef0"\n'
    )
    done = run("serve", PYTHONPATH=str(tmp_path / "none"))
    fails(done, ExitCode.ERROR, f"needs the package {module}", how_to_install(extra))


def test_hash_password_from_standard_input(run: Run) -> None:
    from argon2 import PasswordHasher

    done = run("access", "hash-password", stdin="open sesame\n")
    assert done.returncode == 0
    assert PasswordHasher().verify(done.stdout.strip(), "open sesame")
    assert done.stdout.startswith("$argon2id$")
    fails(run("access", "hash-password", stdin="\n"), ExitCode.USAGE, "empty")


def test_new_key_prints_the_hash_of_the_whole_key(run: Run, tmp_path: Path) -> None:
    import hashlib

    made = json.loads(run("access", "new-key", "laptop", "--json").stdout)
    assert re.fullmatch(r"qk_[A-Za-z0-9_-]{43}", made["key"])
    assert made["hash"] == "sha256:" + hashlib.sha256(made["key"].encode()).hexdigest()
    text = run("access", "new-key", "laptop").stdout
    toml = text[text.index("[[access.keys]]") :]
    (tmp_path / "qwenctl.toml").write_text(f"[gpu.main]\n{toml}")
    assert run("config", "validate").returncode == 0


def test_serve_says_what_is_wrong_and_a_foreign_proxy_package_never_wins(
    run: Run, tmp_path: Path, config: Path
) -> None:
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "proxy").mkdir(parents=True)
        (place / "proxy" / "__init__.py").write_text("raise SystemExit(99)\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--listen", f"127.0.0.1:{port}", PYTHONPATH=str(tmp_path / "elsewhere"))
    fails(done, ExitCode.USAGE, f"127.0.0.1:{port}", "in use")


def test_serve_without_a_gpu(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("")
    fails(run("serve"), ExitCode.USAGE, "no GPU is configured")


def test_the_first_steps_work_as_written(run: Run, tmp_path: Path) -> None:
    """init, serve, up, open: with nothing installed but the proxy."""
    import urllib.request

    assert run("init", "--here").returncode == 0
    path = tmp_path / "qwenctl.toml"
    service, proxy = free_port(), free_port()
    path.write_text(path.read_text().replace("7860", str(service)))  # the machine's may be taken
    env = {"QWENCTL_PROXY__LISTEN": f"127.0.0.1:{proxy}"}
    serve = subprocess.Popen(
        [PROGRAM, "serve"], cwd=tmp_path, env=environment(tmp_path, **env),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert serve.stderr is not None
        while "listening" not in (line := serve.stderr.readline()):
            assert line
        done = run("up", **env)
        assert done.returncode == 0, done.stderr
        assert f"main is ready: http://127.0.0.1:{proxy} " in done.stdout
        assert "estimated" in done.stderr  # no boot was seen yet
        assert "usually" not in done.stderr
        with urllib.request.urlopen(f"http://127.0.0.1:{proxy}/", timeout=10) as page:
            assert b"It works" in page.read()
        assert run("down", **env).returncode == 0
    finally:
        serve.terminate()
        serve.communicate(timeout=30)
