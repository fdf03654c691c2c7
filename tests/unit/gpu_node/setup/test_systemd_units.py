"""The units are read by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.setup.systemd_units import AGENT, DROP_IN, TIMER, WATCHDOG, Node, render

NODE = Node(
    program=("/bin/true",),
    python="/bin/true",
    config="/etc/qwenctl/node.toml",
    user="qwenctl",
    secret_file="/etc/qwenctl/node.secret",
    state_dir="/var/lib/qwenctl-node",
    log_dir="/var/log/qwenctl-node",
    power_off=True,
    processes=False,
)

SYSTEMD = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    not SYSTEMD, reason="this machine cannot check units: no systemd-analyze"
)


def write(files: dict[str, str], directory: Path) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)


def verify(directory: Path) -> list[str]:
    """What systemd says against the units; nothing but what names them."""
    units = [str(file) for pattern in ("*.service", "*.timer") for file in directory.glob(pattern)]
    assert len(units) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    return [line for line in done.stderr.splitlines() if "qwenctl" in line]


@needs_systemd
@pytest.mark.parametrize(
    "node",
    [
        NODE,
        replace(NODE, processes=True, power_off=False),
        replace(NODE, processes=True, user="root"),
        replace(NODE, state_dir="/data/with a space/100%", log_dir='/data/"x"', config="/a b/c$d"),
    ],
)
def test_systemd_accepts_them(node: Node, tmp_path: Path) -> None:
    write(render(node), tmp_path)
    assert verify(tmp_path) == []


@needs_systemd
def test_systemd_would_complain(tmp_path: Path) -> None:
    files = render(NODE)
    write({**files, AGENT: files[AGENT].replace("NoNewPrivileges=", "NoSuchPrivileges=")}, tmp_path)
    assert any("NoSuchPrivileges" in line for line in verify(tmp_path))


def exposure(unit: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(unit)], capture_output=True, text=True
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this machine cannot rate units: its systemd is older than 250")
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found.group(1))


@needs_systemd
def test_little_is_left_to_a_broken_agent(tmp_path: Path) -> None:
    """0 is shut in, 10 may do everything; what most distributions ship is 9 and more."""
    write(render(NODE), tmp_path)
    assert exposure(tmp_path / AGENT) <= 2.5
    assert exposure(tmp_path / WATCHDOG) <= 2.5


@needs_systemd
def test_the_drop_in_loosens_and_not_everything(tmp_path: Path) -> None:
    write(render(replace(NODE, processes=True)), tmp_path)
    assert 2.5 < exposure(tmp_path / AGENT) <= 6.0
    assert exposure(tmp_path / WATCHDOG) <= 2.5


def test_it_does_not_wait_for_docker_or_for_the_network_to_be_online() -> None:
    text = render(NODE)[AGENT]
    [after] = re.findall(r"^After=(.*)$", text, re.MULTILINE)
    assert after == "network.target"
    assert "Wants=docker.service" in text
    # Pages that it reads ahead count as its memory: with a limit the weights would not stay.
    assert not re.search(r"^Memory(Max|High|Limit)=", text, re.MULTILINE)


def test_only_some_clouds_power_off(tmp_path: Path) -> None:
    for name in (AGENT, WATCHDOG):
        assert "poweroff" in render(NODE)[name]
        assert "poweroff" not in render(replace(NODE, power_off=False))[name]


@pytest.mark.parametrize(("status", "expected"), [("70", "off\n"), ("0", ""), ("1", ""), ("", "")])
def test_the_exit_code_of_the_dead_mans_switch_powers_off(status: str, expected: str) -> None:
    for name in (AGENT, WATCHDOG):
        [line] = re.findall(r"^ExecStopPost=\+/bin/sh -c (.*)$", render(NODE)[name], re.MULTILINE)
        script = line.strip("'").replace("$$", "$")
        done = subprocess.run(
            ["/bin/sh", "-c", f"systemctl() {{ echo off; }}; {script}"],
            env={"EXIT_STATUS": status},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, expected)


def test_places_of_its_own_are_made_by_systemd_and_others_opened() -> None:
    text = render(NODE)[AGENT]
    assert "StateDirectory=qwenctl-node\nLogsDirectory=qwenctl-node\n" in text
    assert "StateDirectoryMode=0700\n" in text
    text = render(replace(NODE, state_dir="/data/node", log_dir="/var/log/../x"))[AGENT]
    assert "ReadWritePaths=/data/node\nReadWritePaths=/var/log/../x\n" in text


def test_the_files(tmp_path: Path) -> None:
    assert set(render(NODE)) == {AGENT, WATCHDOG, TIMER}
    assert set(render(replace(NODE, processes=True))) == {AGENT, WATCHDOG, TIMER, DROP_IN}


def test_the_agent_waits_for_its_secret_and_the_watchdog_does_not() -> None:
    """An instance whose secret is gone, or never comes, has to go off, too."""
    files = render(NODE)
    assert "ConditionPathExists=/etc/qwenctl/node.secret\n" in files[AGENT]
    assert "Condition" not in files[WATCHDOG]
