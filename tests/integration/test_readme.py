"""Each command of the READMEs runs in a clean home, or is marked as needing more than that."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import requests

from qwenctl.config.deployment import Config
from tests.support.deployment import processes_of
from tests.support.net import free_ports
from tests.support.paths import ROOT
from tests.support.program import PROGRAM
from tests.support.waiting import until

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

READMES = ["README.md", "README.zh-CN.md"]


class Block(NamedTuple):
    needs: str
    language: str
    text: str


def blocks(readme: str) -> list[Block]:
    text = (ROOT / readme).read_text("utf-8")
    found = re.findall(r"(?:<!-- needs: (.*?) -->\n)?```(\w*)\n(.*?)```", text, re.DOTALL)
    return [Block(*parts) for parts in found]


def commands(block: Block) -> list[list[str]]:
    return [
        words for line in block.text.splitlines() if (words := shlex.split(line, comments=True))
    ]


class Home:
    """A home directory with nothing in it, and a checkout beside it, as in a new container."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.listen, self.service = free_ports(2)
        tools = directory / "bin"
        tools.mkdir()
        for name in ("qwenctl", "qwenctl-node"):
            (tools / name).symlink_to(PROGRAM.with_name(name))
        self.env = {
            "HOME": str(directory),
            "PATH": f"{tools}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "QWENCTL_PROXY__LISTEN": f"127.0.0.1:{self.listen}",  # not one that others use
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def run(self, words: list[str]) -> None:
        if words[0] == "pip":
            assert_extras(words)
        elif words == ["qwenctl", "serve"]:
            self.serve()
        else:
            done = subprocess.run(
                words,
                cwd=self.directory,
                env=self.env,
                input="correct horse battery\n" * 2,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
            if words == ["qwenctl", "init"]:
                file = self.directory / ".config" / "qwenctl" / "qwenctl.toml"
                file.write_text(file.read_text().replace("7860", str(self.service)))

    def serve(self) -> None:
        with (self.directory / "serve.log").open("wb") as log:
            serving = subprocess.Popen(
                ["qwenctl", "serve"],
                cwd=self.directory,
                env=self.env,
                executable=str(self.directory / "bin" / "qwenctl"),
                stdout=log,
                stderr=log,
            )
        self.running.append(serving)

        def answers() -> bool:
            assert serving.poll() is None, (self.directory / "serve.log").read_text()
            try:
                url = f"http://127.0.0.1:{self.listen}/_qwenctl/healthz"
                return requests.get(url, timeout=5).ok
            except requests.ConnectionError:
                return False

        until(answers, 30, "the proxy's start")

    def close(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        mine = list(processes_of(self.directory))
        for process_left in mine:
            process_left.kill()
        psutil.wait_procs(mine, timeout=5)


def assert_extras(words: list[str]) -> None:
    """What is to be installed is in the checkout; the network is not asked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[:2] == ["pip", "install"]
    for word in words[2:]:
        found = re.fullmatch(r"\.\[([a-z,]+)\]", word)
        assert found, word
        assert set(found[1].split(",")) <= set(project["optional-dependencies"]), word


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_commands_run_in_their_order(readme: str, home: Home) -> None:
    walked = [block for block in blocks(readme) if block.language == "sh" and not block.needs]
    for block in walked:
        for words in commands(block):
            home.run(words)
    ran = {words[1] for block in walked for words in commands(block) if words[0] == "qwenctl"}
    assert {"init", "serve", "up", "access"} <= ran


@pytest.mark.parametrize("readme", READMES)
def test_what_is_not_run_is_marked(readme: str) -> None:
    needs = [block.needs for block in blocks(readme) if block.needs]
    assert "an account" in needs
    assert "Docker and a GPU" in needs


def test_both_languages_have_the_same_commands() -> None:
    first, second = ([commands(b) for b in blocks(r) if b.language == "sh"] for r in READMES)
    assert first == second


@pytest.mark.parametrize("readme", READMES)
def test_settings_are_valid(readme: str) -> None:
    found = [block for block in blocks(readme) if block.language == "toml"]
    assert found
    for block in found:
        Config.model_validate(tomllib.loads(block.text))


@pytest.mark.parametrize("readme", READMES)
def test_options_exist(readme: str) -> None:
    """Of the commands that are not run, and of those in the text."""
    text = (ROOT / readme).read_text("utf-8")
    lines = [shlex.split(code) for code in re.findall(r"`(qwenctl [a-z][^`]*)`", text)]
    lines += [words for block in blocks(readme) if block.needs for words in commands(block)]
    for words in lines:
        if words[0] == "qwenctl":
            plain = [word for word in words[1:4] if re.fullmatch(r"[a-z][a-z-]*", word)]
            shown = _help(tuple(plain[:2]))
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert option in shown, f"{shlex.join(words)}: {option}"


def _help(command: tuple[str, ...]) -> str:
    if command not in _HELP:
        done = subprocess.run(
            [str(PROGRAM), *command, "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            check=False,
        )
        if done.returncode != 0 and len(command) > 1:
            return _help(command[:-1])  # its last word was an argument
        assert done.returncode == 0, command
        _HELP[command] = done.stdout
    return _HELP[command]


_HELP: dict[tuple[str, ...], str] = {}
