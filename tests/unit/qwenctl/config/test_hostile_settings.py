"""Settings that no system call, no parser and no cloud can take are refused in one sentence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from gpu_node.settings import load_settings
from qwenctl.cli.setup.config import validate
from qwenctl.config.loading import load_config
from qwenctl.errors import ConfigError

GPU = "[[gpu.main.service]]\ncommand = ['x']\n"


def load(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> str:
    """Load both programs' kind of file; return what is said."""
    file = tmp_path / "qwenctl.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_config(str(file), env=env or {})
    return str(refusal.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://10.0.0.1", "is a URL; give the host name or address only, here '10.0.0.1'"),
        ("https://node.example:8443/x?y", "here 'node.example'"),
        ("//10.0.0.1", "here '10.0.0.1'"),
        ("http://[fd00::1]:80/", "here 'fd00::1'"),
        ("node?x", "here 'node'"),
        ("node#x", "here 'node'"),
        ("http://", "such as 10.0.0.7"),
        ("user:word@node", "leave out the login, here 'node'"),
        ("10.0.0.1 ,10.0.0.2", "neither a host name nor an address"),
        ("10.0.0.256", "neither a host name nor an address"),
        ("1.2.3", "neither a host name nor an address"),
        ("no de", "neither a host name nor an address"),
        ("a\u202eb", "is no host name"),
    ],
)
@pytest.mark.parametrize("key", ["address = {}", "hosts = [{}]"])
def test_an_address_is_one_of_a_host_alone(
    tmp_path: Path, key: str, address: str, words: str
) -> None:
    said = load(f"[gpu.main]\n{key.format(json.dumps(address))}\n", tmp_path)
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_login_is_not_said_again(tmp_path: Path) -> None:
    said = load('[gpu.main]\naddress = "me:hunter2@node"\n', tmp_path)
    assert "leave out the login" in said


@pytest.mark.parametrize(
    "text",
    [
        'state_dir = "a\\u0000b"',
        'redis_password_file = "a\\u0000b"',
        'node_secret_file = "a\\u0000b"',
        'redis_url = "unix:///a\\u0000b"',
        '[gpu.main.aws]\nprofile = "a\\u0000b"',
        '[[gpu.main.service]]\ncommand = ["x", "a\\u0000b"]',
        '[[gpu.main.service]]\ncommand = ["x"]\nenv_file = "a\\u0000b"',
        '[[gpu.main.prewarm]]\nexceptions = ["a\\u0000b.ics"]',
        '"gpu\\u0000" = 1',
    ],
)
def test_nul_is_refused_wherever_it_is(tmp_path: Path, text: str) -> None:
    said = load(text, tmp_path)
    assert "remove the NUL character" in said
    assert "\0" not in said
    assert len(said.splitlines()) == 1


def test_nul_and_homes_of_nobody_in_the_paths_of_files(tmp_path: Path) -> None:
    for path in ("a\0b", "~nobody-of-this-name/x"):
        for refused in (
            lambda path=path: load_config(path, env={}),
            lambda path=path: load_settings(path, {}),
        ):
            with pytest.raises(ConfigError, match=r"no path has a NUL|has no such user"):
                refused()
    assert "has no user 'nobody-of-this-name'" in load(
        'state_dir = "~nobody-of-this-name/x"', tmp_path
    )


@pytest.mark.parametrize(
    "text",
    [
        f"a = {'[' * 20000}{']' * 20000}",
        f"a = {'{a = ' * 5000}1{'}' * 5000}",
        f"{'a.' * 5000}a = 1",
        f"[{'a.' * 5000}a]",
    ],
)
def test_tables_without_end(tmp_path: Path, text: str) -> None:
    said = load(text, tmp_path)
    assert said.endswith("lie too deep in each other for settings")
    assert len(said) < 300 + len(str(tmp_path))
    with pytest.raises(ConfigError, match="too deep"):
        load_settings(str(tmp_path / "qwenctl.toml"), {})


def test_variables_without_end(tmp_path: Path) -> None:
    for value in ("[" * 100_000, '{"a":' * 100_000):
        said = load("", tmp_path, {"QWENCTL_GPU": value})
        assert said.startswith("QWENCTL_GPU: tables or lists lie too deep")


def test_a_pipe_and_a_device_are_no_secret_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        config = load_config(None, env={"QWENCTL_NODE_SECRET_FILE": str(path)})
        with pytest.raises(ConfigError, match=r"node_secret_file: .*it is no regular file"):
            config.read_node_secret()
        with pytest.raises(ConfigError, match="it is no regular file"):
            load_settings(str(path), {})
    assert time.monotonic() - began < 5


class TestSecrets:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "qwenctl.toml"
        file.write_text(GPU)
        file.chmod(0o600)
        return file

    def test_a_short_one_is_refused_with_how_to_make_one(self, file: Path, tmp_path: Path) -> None:
        file.write_text(f'node_secret = "x"\n{GPU}')
        with pytest.raises(ConfigError, match=r"fewer than 8 characters.*openssl rand -base64 32"):
            validate(str(file), None, False)
        secret = tmp_path / "secret"
        secret.write_text("short\n")
        file.write_text(f'node_secret_file = "{secret}"\n{GPU}')
        with pytest.raises(ConfigError, match="node_secret_file: a secret of fewer than 8"):
            validate(str(file), None, False)
        node = {"PROXY_URLS": '["http://a"]', "GPU": "main"}
        for key, value in (("NODE_SECRET", "x"), ("NODE_SECRET_FILE", str(secret))):
            env = {f"QWENCTL_NODE__{k}": v for k, v in {**node, key: value}.items()}
            with pytest.raises(ConfigError, match="fewer than 8 characters"):
                load_settings(None, env).read_secret()

    def test_a_weak_one_is_warned_of(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text(f'node_secret = "123456789"\n{GPU}')
        validate(str(file), None, False)
        assert "the node secret is shorter than 16 characters" in capsys.readouterr().err

    @pytest.mark.parametrize("key", ["node_secret_file", "redis_password_file"])
    def test_files_that_others_can_read_are_warned_of(
        self, file: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        secret = tmp_path / "a b"
        secret.write_text("a secret that is long enough\n")
        file.write_text(f'{key} = "{secret}"\n{GPU}')
        for mode, words in (
            (0o600, ""),
            (0o640, ""),
            (0o644, "every user of this machine can read"),
        ):
            secret.chmod(mode)
            validate(str(file), None, False)
            said = capsys.readouterr().err
            assert words in said
            assert bool(words) == ("chmod o-rwx" in said)
        secret.chmod(0o666)
        with pytest.raises(ConfigError, match=f"{key}: every user of this machine can change"):
            validate(str(file), None, False)

    def test_a_config_file_with_secrets_that_others_can_read_is_warned_of(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.chmod(0o644)
        validate(str(file), None, False)
        assert "secrets are open" not in capsys.readouterr().err
        for line in (
            'node_secret = "a secret, long enough"',
            'redis_url = "redis://:word@127.0.0.1:1"',
        ):
            file.write_text(f"{line}\n{GPU}")
            validate(str(file), None, False)
            assert f"can read {file}" in capsys.readouterr().err
