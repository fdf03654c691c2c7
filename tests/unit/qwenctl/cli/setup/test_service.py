"""The proxy's systemd unit, and its container image."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenctl.cli.setup import service
from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.errors import ConfigError, UserError
from qwenctl.lib import systemd
from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLOUD = """\
[proxy]
listen = "127.0.0.1:{port}"
shutdown_grace = "{grace}"
[gpu.main]
provider = "{provider}"
"""


def config(directory: Path, port: int = 8080, grace: str = "60s", provider: str = "aws") -> Config:
    path = directory / "a b%.toml"
    path.write_text(CLOUD.format(port=port, grace=grace, provider=provider))
    return load_config(str(path), env={})


def unit(made: Config, user: str = "qwenctl") -> str:
    return service.render(made, ("/bin/true",), user=user)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
@pytest.mark.parametrize("provider", ["aws", "local"])
@pytest.mark.parametrize("port", [80, 8080])
def test_systemd_accepts_it(tmp_path: Path, provider: str, port: int) -> None:
    file = tmp_path / "proxy.service"
    file.write_text(unit(config(tmp_path, port, provider=provider), user="root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_may_end_in_its_own_time(tmp_path: Path) -> None:
    text = unit(config(tmp_path, grace="10m"))
    assert "TimeoutStopSec=615\n" in text
    assert "KillMode=process\n" in text  # the embedded store stays for what is in flight
    assert "Restart=always\n" in text
    assert '"' + str(tmp_path / "a b%%.toml") + '"' in text


def test_it_starts_again_whatever_it_ended_by(tmp_path: Path) -> None:
    """A port that is still in use at a boot, or a network that comes later, ends it with 2."""
    text = unit(config(tmp_path))
    assert "Restart=always\n" in text
    assert "RestartPreventExitStatus" not in text
    assert "StartLimitIntervalSec=0\n" in text


def test_it_is_hardened_unless_instances_are_its_children(tmp_path: Path) -> None:
    assert systemd.HARDENING in unit(config(tmp_path))
    assert systemd.HARDENING not in unit(config(tmp_path, provider="local"))
    assert "CAP_NET_BIND" not in unit(config(tmp_path))
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit(config(tmp_path, port=80))


def test_a_service_of_ones_own_names_no_user(tmp_path: Path) -> None:
    text = unit(config(tmp_path), user="")
    assert "User=" not in text
    assert "ProtectSystem" not in text  # a user's systemd may not
    assert "WantedBy=default.target\n" in text


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A user's systemd that only notes what it is told."""
    told: list[tuple[str, ...]] = []
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(systemd, "systemd_runs", lambda: True)
    monkeypatch.setattr(systemd.Host, "run", lambda _, *words: told.append(words))
    monkeypatch.setattr(systemd, "systemctl", lambda *_: "active" if told else "inactive")
    return told


def test_install_status_uninstall(
    tmp_path: Path, own: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = config(tmp_path).source
    path = tmp_path / "systemd" / "user" / service.UNIT
    assert service.status(True, False, source) == 1
    service.install(True, "qwenctl", True, True, source)
    assert not path.exists()
    assert own == []
    assert capsys.readouterr().out.count("ExecStart=") == 1
    service.install(True, "qwenctl", True, False, source)
    assert "enable-linger" in capsys.readouterr().out
    assert [words[2] for words in own] == ["daemon-reload", "enable", "restart"]
    assert service.status(True, False, source) == 0
    assert "install` again" not in capsys.readouterr().out
    own.clear()
    own.append(("systemctl", "--user", "start"))
    service.install(True, "qwenctl", True, False, source)  # nothing has changed
    assert "restart" not in [words[2] for words in own]
    config(tmp_path, grace="5m")
    service.status(True, False, source)
    assert "install` again" in capsys.readouterr().out
    service.uninstall(True, False)
    assert not path.exists()
    service.uninstall(True, False)
    assert "nothing was installed" in capsys.readouterr().out


def test_status_is_of_the_settings_that_it_was_installed_with(
    tmp_path: Path,
    own: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = Path(config(tmp_path).source)
    service.install(True, "qwenctl", True, False, str(source))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "qwenctl.toml").write_text(CLOUD.format(port=1, grace="1s", provider="local"))
    monkeypatch.chdir(elsewhere)
    assert service.status(True, False, None) == 0
    assert "install` again" not in capsys.readouterr().out
    config(tmp_path, grace="5m")
    assert service.status(True, False, None) == 0
    assert "install` again" in capsys.readouterr().out
    source.unlink()  # or a file that only its user may read: it runs all the same
    assert service.status(True, False, str(source)) == 0
    assert own


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config(tmp_path).source
    monkeypatch.setattr(systemd, "systemd_runs", lambda: False)
    with pytest.raises(UserError, match="systemd does not run here"):
        service.install(False, "qwenctl", True, False, source)
    monkeypatch.setattr(systemd, "systemd_runs", lambda: True)
    monkeypatch.setattr(systemd, "is_root", lambda: False)
    with pytest.raises(UserError, match="--user"):
        service.install(False, "qwenctl", True, False, source)
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    with pytest.raises(ConfigError, match="qwenctl init"):
        service.install(False, "qwenctl", True, True, str(empty))


def test_the_image_has_what_it_names() -> None:
    """The image itself is not built here: that needs a registry."""
    text = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"whl\)\[([a-z,]+)\]", text)
    assert extras
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert 'ENTRYPOINT ["qwenctl"]' in text
    assert "qwenctl" in project["scripts"]
    assert "STOPSIGNAL SIGTERM" in text
    assert re.search(r"^USER qwenctl$", text, re.MULTILINE)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    for name in (*kept, "hatch_build.py", project["readme"]):
        assert (ROOT / name).exists(), name
        assert name in kept
