"""Preparing an instance for a snapshot, without Docker and without touching this machine."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from gpu_node.settings import NodeSettings
from gpu_node.setup.bake import bake, check, identity
from gpu_node.setup.commands import main
from qwenctl.errors import UserError
from qwenctl.protocol.messages import Service, Spec
from tests.support.cold_files import MB, write
from tests.support.other_user import needs_root, nobody


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    for name in ("state", "log"):
        (tmp_path / name).mkdir()
    return NodeSettings(
        proxy_urls=("http://127.0.0.1:1",),
        gpu="main",
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "log"),
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The files of a machine that make it this machine."""
    root = tmp_path / "root"
    for name in (
        "etc/cloud/cloud.cfg",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "etc/ssh/sshd_config",
        "var/lib/systemd/random-seed",
        "var/lib/cloud/instances/i-1/user-data.txt",
        "var/lib/cloud/seed/nocloud/meta-data",
        "var/lib/cloud/sem/config_scripts",
        "root/.bash_history",
        "home/admin/.bash_history",
        "home/admin/notes",
    ):
        write(root / name)
    (root / "var/lib/cloud/instance").symlink_to("instances/i-1")
    write(root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "var/lib/dbus").mkdir()
    (root / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    return root


def keep_spec(settings: NodeSettings, **service: object) -> None:
    spec = Spec(version="v1", services=(Service(command=("true",), **service),))  # type: ignore[arg-type]
    Path(settings.state_dir, "spec.json").write_text(spec.model_dump_json())


def levels(settings: NodeSettings, root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in check(settings, root):
        found.setdefault(finding.check, set()).add(finding.level)
    return found


@needs_root
def test_it_takes_away_what_is_of_this_boot_and_keeps_the_spec(
    settings: NodeSettings, machine: Path
) -> None:
    keep_spec(settings)
    for name in ("deadman.json", "status.json", "notice.json", "settings.json", "mine.txt"):
        write(Path(settings.state_dir, name))
    for name in ("webui.log", "webui.log.1"):
        write(Path(settings.log_dir, name))
    assert "fail" in levels(settings, machine)["state"]
    said: list[str] = []
    bake(settings, clean=False, say=said.append, root=machine)
    left = {path.name for path in Path(settings.state_dir).iterdir()}
    assert left == {"spec.json", "settings.json", "mine.txt"}
    assert list(Path(settings.log_dir).iterdir()) == []
    assert levels(settings, machine)["state"] == {"ok"}
    # Without --clean the machine stays what it is.
    assert (machine / "etc/machine-id").read_text().startswith("0123")
    assert levels(settings, machine)["identity"] == {"warn"}
    bake(settings, clean=False, say=said.append, root=machine)  # once more changes nothing
    assert sum(line.startswith("removed") for line in said) == 5


@needs_root
def test_clean_removes_the_identity_and_nothing_else(settings: NodeSettings, machine: Path) -> None:
    keep_spec(settings)
    bake(settings, clean=True, say=lambda _: None, root=machine)
    left = {
        str(path.relative_to(machine))
        for path in machine.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert left == {
        "etc/cloud/cloud.cfg",
        "etc/machine-id",
        "etc/ssh/sshd_config",
        "home/admin/notes",
        "var/lib/cloud/seed/nocloud/meta-data",
    }
    assert (machine / "etc/machine-id").read_text() == ""
    assert (machine / "var/lib/dbus/machine-id").is_symlink()
    assert not (machine / "var/lib/cloud/instance").is_symlink()
    assert identity(machine) == []
    assert levels(settings, machine)["identity"] == {"ok"}


def test_without_cloud_init_nobody_would_make_new_host_keys(machine: Path) -> None:
    (machine / "etc/cloud/cloud.cfg").unlink()
    named = [str(path.relative_to(machine)) for path, _ in identity(machine)]
    assert not any(name.startswith(("etc/ssh", "var/lib/cloud")) for name in named)
    assert "etc/machine-id" in named


@needs_root
def test_an_agent_that_runs_would_write_its_state_again(
    settings: NodeSettings, machine: Path
) -> None:
    keep_spec(settings)
    with Path(settings.state_dir, "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert levels(settings, machine)["state"] == {"fail"}
        with pytest.raises(UserError, match="stop it first"):
            bake(settings, clean=True, say=lambda _: None, root=machine)
    assert (machine / "etc/machine-id").read_text() != ""


@pytest.mark.parametrize("content", [None, "not json"])
def test_without_a_spec_there_is_nothing_to_prepare(
    settings: NodeSettings, machine: Path, content: str | None
) -> None:
    if content is not None:
        Path(settings.state_dir, "spec.json").write_text(content)
    assert levels(settings, machine)["spec"] == {"fail"}
    with pytest.raises(UserError, match="spec"):
        bake(settings, clean=False, say=lambda _: None, root=machine)


def test_weights_are_looked_for(settings: NodeSettings, machine: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    keep_spec(settings, weights=str(model))
    assert levels(settings, machine)["weights"] == {"fail"}
    write(model / "a.safetensors", 2 * MB)
    assert levels(settings, machine)["weights"] == {"ok"}
    write(model / "blobs" / "half.incomplete")
    assert levels(settings, machine)["weights"] == {"ok", "warn"}
    keep_spec(settings)
    assert levels(settings, machine)["weights"] == {"warn"}


def test_an_env_file_has_to_be_there(settings: NodeSettings, machine: Path, tmp_path: Path) -> None:
    keep_spec(settings, env_file=str(tmp_path / "env"))
    assert levels(settings, machine)["env_file"] == {"fail"}
    write(tmp_path / "env")
    assert "env_file" not in levels(settings, machine)


@needs_root
def test_who_may_not_look_everywhere_is_told_to_use_sudo(
    settings: NodeSettings, machine: Path, tmp_path: Path
) -> None:
    (machine / "root").chmod(0o700)
    with nobody(tmp_path), pytest.raises(UserError, match=r"root/\.bash_history: use sudo"):
        list(check(settings, root=machine))


@needs_root
def test_the_command(
    settings: NodeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        'proxy_urls = ["http://127.0.0.1:1"]\ngpu = "main"\n'
        f'state_dir = "{settings.state_dir}"\nlog_dir = "{settings.log_dir}"\n'
    )
    assert main(["bake", "--check", "--config", str(config)]) == 1
    assert "FAIL  spec" in capsys.readouterr().out
    keep_spec(settings)
    code = main(["bake", "--check", "--json", "--config", str(config)])
    shown = json.loads(capsys.readouterr().out)
    failed = [one["check"] for one in shown["checks"] if one["level"] == "fail"]
    assert (code, shown["ok"]) == ((1, False) if failed else (0, True))
    assert set(failed) <= {"boot"}  # on a machine with systemd and without the agent
    assert main(["bake", "--config", str(tmp_path / "nowhere.toml")]) == 2
    assert "cannot read" in capsys.readouterr().err
