from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.settings import SettingsError, load_settings

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
    with pytest.raises(SettingsError) as raised:
        load_settings(str(file), {})
    assert says in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    settings = load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRET": "hush-hush"})
    assert "hush" not in repr(settings)
    assert settings.read_secret() == "hush-hush"
    with pytest.raises(SettingsError) as raised:
        load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRETS": "hush-hush"})
    assert "hush" not in str(raised.value)
    empty = tmp_path / "empty"
    empty.touch()
    settings = load_settings(None, {**MINIMUM, "QWENCTL_NODE__NODE_SECRET_FILE": str(empty)})
    with pytest.raises(SettingsError, match="is empty"):
        settings.read_secret()
    with pytest.raises(SettingsError, match="set node_secret_file"):
        load_settings(None, MINIMUM).read_secret()
