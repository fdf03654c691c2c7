from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_node.settings import load_last_good, load_settings, save_last_good
from qwenctl.errors import ConfigError

MINIMUM = {"QWENCTL_NODE__GPU": "main", "QWENCTL_NODE__PROXY_URLS": '["http://a:1/", "https://b"]'}


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('proxy_urls = ["http://file"]\ngpu = "other"\ndead_man = 5\n')
    settings = load_settings(str(file), {"QWENCTL_NODE__GPU": "main", "QWENCTL_GPU": "x"})
    assert settings.gpu == "main"
    assert settings.proxy_urls == ("http://file",)
    assert settings.dead_man == 5


def test_lists_are_json_in_the_environment() -> None:
    assert load_settings(None, MINIMUM).proxy_urls == ("http://a:1", "https://b")


def test_a_boot_has_an_id_of_its_own() -> None:
    settings = load_settings(None, MINIMUM)
    assert 8 <= len(settings.this_boot()) <= 64
    assert (
        load_settings(None, {**MINIMUM, "QWENCTL_NODE__BOOT_ID": "boot-1234"}).this_boot()
        == "boot-1234"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpu = ", "not valid TOML"),
        ("gpus = 'a'", "did you mean 'gpu'?"),
        ("", "gpu is missing; set it there or in QWENCTL_NODE__GPU"),
        ("cloud = 'azure'", "cloud: "),
        ("metadata_url = 'localhost'", "metadata_url: "),
        ("gpu = 'a'\nproxy_urls = ['b']", "'b' is no http:// or https:// address"),
        ("gpu = 'a'\nproxy_urls = ['http://b']\ndead_man = 0", "dead_man"),
    ],
)
def test_errors_name_the_file_and_the_key(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(str(file), {})
    assert says in str(raised.value)
    assert str(file) in str(raised.value)


def test_the_last_good_settings_are_found_again(tmp_path: Path) -> None:
    env = {**MINIMUM, "QWENCTL_NODE__STATE_DIR": str(tmp_path)}
    assert load_last_good(None, env) is None
    given = load_settings(
        None,
        {
            **env,
            "QWENCTL_NODE__NODE_SECRET": "hush-hush",
            "QWENCTL_NODE__BOOT_ID": "boot-1234",
            "QWENCTL_NODE__POWER_OFF_COMMAND": '["off", "now"]',
            "QWENCTL_NODE__DEAD_MAN": "5",
        },
    )
    save_last_good(given)
    [file] = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    # Neither the secret nor what was of one boot.
    assert "hush" not in file.read_text()
    found = load_last_good(None, env)
    assert found == load_settings(
        None,
        {
            **env,
            "QWENCTL_NODE__POWER_OFF_COMMAND": '["off", "now"]',
            "QWENCTL_NODE__DEAD_MAN": "5",
        },
    )
    # Another version of the program may have written it, with keys that are none of ours.
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_another_version": 1}))
    assert load_last_good(None, env) == found
    for text in ("", "[]", '{"gpu": 3}', "\udc80"):
        file.write_text(text, errors="surrogateescape")
        assert load_last_good(None, env) is None


@pytest.mark.parametrize("broken", ["wrong = 1\n", "gpu = \n", "gpu = 3\n"])
def test_they_are_looked_for_where_the_broken_file_says(tmp_path: Path, broken: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    save_last_good(load_settings(None, {**MINIMUM, "QWENCTL_NODE__STATE_DIR": str(state)}))
    file = tmp_path / "node.toml"
    file.write_text(f'# state_dir = "/x"\n{broken}state_dir = "{state}"  # ours\n')
    found = load_last_good(str(file), {})
    assert found is not None
    assert found.state_dir == str(state)


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    settings = load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRET": "hush-hush"})
    assert "hush" not in repr(settings)
    assert settings.read_secret() == "hush-hush"
    with pytest.raises(ConfigError) as raised:
        load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRETS": "hush-hush"})
    assert "hush" not in str(raised.value)
    empty = tmp_path / "empty"
    empty.touch()
    settings = load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRET_FILE": str(empty)})
    with pytest.raises(ConfigError, match="is empty"):
        settings.read_secret()
    with pytest.raises(ConfigError, match="set node_secret_file"):
        load_settings(None, MINIMUM).read_secret()
