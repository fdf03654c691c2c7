"""`qwenctl prewarm` as a user, and as cron, runs it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomllib

from qwenctl.clouds.base import Provider
from qwenctl.config.loading import load_config
from qwenctl.config.providers import make_provider
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Observed, Phase
from qwenctl.errors import ExitCode
from qwenctl.store.store import Store
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer

ALWAYS = 'cron = "0 0 1 1 *"\ntimezone = "UTC"\nduration = "400d"\n'
"""A window that is always open: a year's last one ends after the next has opened."""
NEVER_NOW = 'cron = "0 0 1 1 *"\ntimezone = "UTC"\nduration = "1s"\nlead = 0\n'
"""A window that is over, but for the first second of a year."""


class Machine:
    """A deployment of the local provider without a proxy, and the program to run on it."""

    def __init__(self, directory: Path, url: str, deployment: str, client: Any) -> None:
        self.directory = directory
        self.path = directory / "qwenctl.toml"
        self.store = Store(client, deployment)
        self.head = (
            f'deployment = "{deployment}"\nstate_dir = "{directory}/st"\nredis_url = "{url}"\n'
            "[gpu.main]\nprice_per_hour = 10  # by our contract\n"
            "[gpu.main.timing]\nretry = 0.5\n"
            "[gpu.main.local]\nboot_seconds = 0.2\nstop_seconds = 0.1\n"
        )
        self.write()

    def write(self, *tables: str) -> None:
        self.path.write_text("\n".join((self.head, *tables)))

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        kept = inherited("XDG_", "NO_COLOR", "FORCE_COLOR", "TZ")
        return subprocess.Popen(
            [PROGRAM, *args],
            cwd=self.directory,
            env={**kept, "TZ": "Europe/Berlin", "LANG": "C.UTF-8", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        program = self.start("prewarm", *args, **env)
        try:
            stdout, stderr = program.communicate(timeout=100)
        finally:
            program.kill()
        return subprocess.CompletedProcess(args, program.returncode, stdout, stderr)

    def silent(self, *args: str) -> None:
        done = self.run(*args)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def fails(self, code: ExitCode, word: str, *args: str) -> None:
        done = self.run(*args)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert word in done.stderr

    @property
    def provider(self) -> Provider:
        config = load_config(str(self.path), env={})
        return make_provider("main", config.gpu["main"], config)

    def wait_observed(self, state: Observed) -> None:
        deadline = time.monotonic() + 30
        while self.provider.describe().state is not state:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def reach(self, phase: Phase) -> None:
        """Have a proxy bring it so far, and die."""
        lock, _, _ = self.store.acquire("main", "dead", 60.0)
        assert lock
        path = [Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING]
        for source, to in pairwise(path[: path.index(phase) + 1]):
            if self.store.snapshot("main").phase is source:
                move = Move(to, "test", Guard.NONE)
                self.store.transition("main", lock, source, move, drain=0, idle_timeout=1)
        assert self.store.snapshot("main").phase is phase
        self.store.release_lock("main", lock)

    @property
    def leases(self) -> list[str]:
        snapshot = self.store.snapshot("main")
        return [entry.name for entry in (*snapshot.leases, *snapshot.blocks)]

    @property
    def starts(self) -> int:
        events = self.store.events("main")
        return sum(event.fields.get("verb") == "start" for event in events)


@pytest.fixture
def machine(
    tmp_path: Path, valkey: ValkeyServer, deployment: str, client: Any
) -> Iterator[Machine]:
    machine = Machine(tmp_path, valkey.url, deployment, client)
    yield machine
    machine.write()
    config = load_config(str(machine.path), env={})
    make_provider("main", config.gpu["main"], config).stop()


def prewarm(name: str, text: str) -> str:
    return f'[[gpu.main.prewarm]]\nname = "{name}"\n{text}'


def off_hours(name: str, text: str) -> str:
    return f'[[gpu.main.off_hours]]\nname = "{name}"\n{text}'


@pytest.mark.parametrize("command", ["list", "add", "remove", "run", "crontab"])
def test_every_command_has_help_with_an_example(machine: Machine, command: str) -> None:
    done = machine.run(command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


class TestRun:
    def test_it_starts_the_instance_and_is_silent(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        assert machine.leases == ["prewarm:all"]
        assert machine.starts == 1
        assert machine.store.snapshot("main").phase is not Phase.OFF
        machine.silent("run", "all", "--gpu", "main")
        assert machine.starts == 1

    @pytest.mark.parametrize(
        "reached", [Phase.STARTING, Phase.BOOTING, Phase.READY, Phase.DRAINING]
    )
    def test_what_stopped_unseen_is_started_again(self, machine: Machine, reached: Phase) -> None:
        """Nobody leads between two runs: the recorded phase says what was, not what is."""
        machine.head = machine.head.replace("retry = 0.5", "retry = 300\ncall_grace = 0.1")
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        machine.reach(reached)
        for number in (2, 3, 4):
            machine.wait_observed(Observed.RUNNING)
            machine.provider.stop()  # as the node's dead-man's switch, or a person, does
            machine.wait_observed(Observed.STOPPED)
            machine.silent("run")
            assert machine.starts == number
            assert machine.provider.describe().state is not Observed.STOPPED
        machine.silent("run")
        assert machine.starts == 4

    def test_what_runs_is_left_alone(self, machine: Machine) -> None:
        """Without a proxy the agent reports to nobody: that is no reason to stop it."""
        machine.head = machine.head.replace("retry = 0.5", "boot = 0.1\nnode_lost = 0.1")
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        machine.wait_observed(Observed.RUNNING)
        machine.reach(Phase.BOOTING)
        for _ in range(2):
            machine.silent("run")
            assert machine.store.snapshot("main").phase is Phase.BOOTING
        assert machine.provider.describe().state is Observed.RUNNING

    def test_a_drain_that_nobody_finished_is_taken_back(self, machine: Machine) -> None:
        """The window opens while the proxy that let it drain is gone, and the instance is not."""
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        machine.wait_observed(Observed.RUNNING)
        machine.reach(Phase.DRAINING)
        for _ in range(2):
            machine.silent("run")
            assert machine.store.snapshot("main").phase is Phase.BOOTING  # its agent says nothing
        assert machine.provider.describe().state is Observed.RUNNING

    def test_off_hours_stop_what_was_started_unseen(self, machine: Machine) -> None:
        machine.write(off_hours("night", ALWAYS))
        machine.silent("run")
        assert machine.provider.describe().state is Observed.STOPPED
        machine.provider.start()  # from the cloud's console
        machine.wait_observed(Observed.RUNNING)
        machine.silent("run")
        assert machine.provider.describe().state is not Observed.RUNNING

    def test_two_at_once_start_once(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        programs = [machine.start("prewarm", "run") for _ in range(3)]
        for program in programs:
            stdout, stderr = program.communicate(timeout=100)
            assert (program.returncode, stdout, stderr) == (0, "", "")
        assert machine.starts == 1
        leases = [e for e in machine.store.events("main") if e.kind == "lease"]
        assert len(leases) == 1

    def test_after_down_it_does_nothing_until_the_next_window(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        assert machine.store.release("main", actor="ada") == 1
        machine.silent("run")
        assert machine.leases == []
        done = machine.run("run", "--json")
        (window,) = json.loads(done.stdout)["windows"]
        assert (window["lease"], window["outcome"]) == ("prewarm:all", "given_up")
        assert machine.run("run", "--dry-run").stdout == "nothing is due\n"
        assert "given up by `qwenctl down`" in machine.run("list").stdout

    def test_nothing_due(self, machine: Machine) -> None:
        machine.silent("run")
        machine.write(prewarm("rare", NEVER_NOW))
        machine.silent("run")
        assert machine.leases == []

    def test_it_may_come_a_little_early(self, machine: Machine) -> None:
        """Cron counts by the minute and by its own clock."""
        soon = datetime.now(timezone.utc) + timedelta(seconds=70)
        cron = f'cron = "{soon:%M %H} * * *"\ntimezone = "UTC"\nduration = "1h"\n'
        machine.write(prewarm("soon", cron + "lead = 0\n"))
        machine.silent("run")
        assert machine.leases == ["prewarm:soon"]

    def test_the_lead_can_be_said(self, machine: Machine) -> None:
        soon = datetime.now(timezone.utc) + timedelta(minutes=20)
        cron = f'cron = "{soon:%M %H} * * *"\ntimezone = "UTC"\nduration = "1h"\n'
        machine.write(prewarm("soon", cron + "lead = 0\n"))
        machine.silent("run")
        assert machine.leases == []
        machine.silent("run", "--lead", "30m")
        assert machine.leases == ["prewarm:soon"]

    def test_only_the_one_that_is_named(self, machine: Machine) -> None:
        machine.write(prewarm("one", ALWAYS), prewarm("two", ALWAYS))
        machine.silent("run", "two")
        assert machine.leases == ["prewarm:two"]
        machine.fails(ExitCode.USAGE, "no schedule named 'three'; configured: one, two",
                      "run", "three")  # fmt: skip

    def test_off_hours_block_and_stop(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        machine.write(prewarm("all", ALWAYS), off_hours("night", ALWAYS))
        machine.silent("run")
        assert set(machine.leases) == {"prewarm:all", "off-hours:night"}
        assert machine.store.snapshot("main").phase in (Phase.STOPPING, Phase.OFF)
        machine.silent("run")  # and nothing starts it

    def test_exit_codes(self, machine: Machine) -> None:
        machine.head += 'fail = "no_capacity"\n'
        machine.write(prewarm("all", ALWAYS))
        machine.fails(ExitCode.NO_CAPACITY, "no_capacity", "run")
        # The lease stays: the next run, or a proxy, tries again.
        assert machine.leases == ["prewarm:all"]
        machine.head = machine.head.replace("no_capacity", "denied")
        machine.write(prewarm("all", ALWAYS))
        machine.fails(ExitCode.DENIED, "denied", "run")

    def test_without_redis(self, machine: Machine, tmp_path: Path) -> None:
        machine.write(prewarm("all", ALWAYS))
        url = f"unix://{tmp_path}/nobody.sock"
        done = machine.run("run", QWENCTL_REDIS_URL=url)
        assert done.returncode == ExitCode.UNAVAILABLE
        assert "Traceback" not in done.stderr

    def test_dry_run_changes_nothing(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        done = machine.run("run", "--dry-run")
        assert done.stdout.startswith("would hold prewarm:all on main until 20")
        assert machine.leases == []
        assert machine.starts == 0


class TestList:
    def test_windows_leads_and_costs(self, machine: Machine) -> None:
        machine.write(
            prewarm("morning", 'cron = "0 9 * * mon-fri"\ntimezone = "Asia/Shanghai"\n'
                    'duration = "3h"\nlead = "30m"\n'),
            off_hours("night", 'cron = "0 20 * * *"\nduration = "11h"\n'),
        )  # fmt: skip
        done = machine.run("list", "--json", "-n", "2")
        morning, night = json.loads(done.stdout)["schedules"]
        assert (morning["kind"], morning["lead_seconds"]) == ("prewarm", 1800)
        assert (night["kind"], night["timezone"]) == ("off-hours", "Europe/Berlin")
        assert len(morning["next"]) == 2
        first = morning["next"][0]
        assert first["cost"] == 35.0
        assert first["opens"] - first["starts"] == 1800
        assert first["local"]["opens"].endswith("T09:00:00+08:00")
        assert night["next"][0]["cost"] is None

        text = machine.run("list").stdout
        assert "morning keeps it ready for 3 h at 0 9 * * mon-fri (Asia/Shanghai)" in text
        assert "09:00 to 12:00, starts 08:30:00, about 35.00" in text
        assert "night keeps it off for 11 h" in text

    def test_the_window_that_is_open(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        machine.silent("run")
        (row,) = json.loads(machine.run("list", "--json").stdout)["schedules"]
        assert row["now"]["opens"] < row["next"][0]["opens"]
        assert row["given_up"] is False
        assert row["lead_auto"] is True

    def test_none(self, machine: Machine) -> None:
        assert machine.run("list").stdout.startswith("no schedules; ")
        assert json.loads(machine.run("list", "--json").stdout) == {"schedules": []}


class TestEdit:
    def test_add_and_remove_leave_every_other_byte(self, machine: Machine) -> None:
        machine.path.chmod(0o640)
        before = machine.path.read_text()
        done = machine.run("add", "morning", "--cron", "0 9 * * mon-fri", "--for", "3h",
                           "--lead", "5m", "--except", "2026-12-25")  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = machine.path.read_text()
        assert text.startswith(before)
        assert tomllib.loads(text)["gpu"]["main"]["prewarm"] == [
            {
                "name": "morning",
                "cron": "0 9 * * mon-fri",
                "timezone": "Europe/Berlin",  # this machine's, said
                "duration": "3h",
                "lead": "5m",
                "exceptions": ["2026-12-25"],
            }
        ]
        assert stat.S_IMODE(machine.path.stat().st_mode) == 0o640
        assert machine.run("add", "night", "--off-hours", "--cron", "0 20 * * *", "--for", "11h",
                           "--timezone", "UTC").returncode == 0  # fmt: skip
        assert machine.run("remove", "morning").returncode == 0
        assert machine.run("remove", "night", "--gpu", "main").returncode == 0
        assert machine.path.read_text() == before
        assert os.listdir(machine.directory) == ["qwenctl.toml"]

    def test_comments_stay_where_they_belong(self, machine: Machine) -> None:
        one = "# for the team\n" + prewarm("one", ALWAYS)
        two = "# for the boss\n" + prewarm("two", ALWAYS + "# lead = 3\n")
        three = "# at night\n" + off_hours("three", ALWAYS)
        machine.write(one, two, three)
        assert machine.run("remove", "two").returncode == 0
        text = machine.path.read_text()
        assert "for the boss" not in text
        assert "# for the team\n[[gpu.main.prewarm]]" in text
        assert "# at night\n[[gpu.main.off_hours]]" in text

    def test_dry_run_writes_nothing(self, machine: Machine) -> None:
        machine.write(prewarm("one", ALWAYS))
        before = machine.path.read_text()
        done = machine.run("add", "two", "--cron", "0 9 * * *", "--for", "1h", "--dry-run")
        assert "[[gpu.main.prewarm]]" in done.stdout
        assert machine.run("remove", "one", "--dry-run", "--json").returncode == 0
        assert machine.path.read_text() == before

    @pytest.mark.parametrize(
        ("words", "args"),
        [
            ("cron: it takes five fields", ["a", "--cron", "0 9", "--for", "1h"]),
            ("no such day comes", ["a", "--cron", "* * */20 * 1L", "--for", "1h"]),
            ("no such time zone", ["a", "--cron", "0 9 * * *", "--for", "1h", "--timezone", "X/Y"]),
            ("duration", ["a", "--cron", "0 9 * * *", "--for", "soon"]),
            ("the name 'one'", ["one", "--cron", "0 9 * * *", "--for", "1h"]),
            ("cannot read", ["a", "--cron", "0 9 * * *", "--for", "1h", "--except", "no.ics"]),
            ("neither a date", ["a", "--cron", "0 9 * * *", "--for", "1h", "--except", "xmas"]),
            ("name", ["A B", "--cron", "0 9 * * *", "--for", "1h"]),
            ("--lead", ["a", "--cron", "0 9 * * *", "--for", "1h", "--off-hours", "--lead", "1m"]),
        ],
    )
    def test_what_is_not_valid_is_not_written(
        self, machine: Machine, words: str, args: list[str]
    ) -> None:
        machine.write(prewarm("one", ALWAYS))
        before = machine.path.read_text()
        machine.fails(ExitCode.USAGE, words, "add", *args)
        assert machine.path.read_text() == before
        assert os.listdir(machine.directory) == ["qwenctl.toml"]

    @pytest.mark.parametrize("cron", ["0 9", "60 9 * * *", "0 9 * * xyz", "every day at 9"])
    def test_a_bad_expression_is_answered_with_a_good_one(
        self, machine: Machine, cron: str
    ) -> None:
        example = 'such as "0 9 * * mon-fri" for 9:00 from Monday to Friday'
        machine.fails(ExitCode.USAGE, example, "add", "a", "--cron", cron, "--for", "1h")

    @pytest.mark.parametrize(
        ("zone", "meant"),
        [
            ("Asia/Shangai", "perhaps Asia/Shanghai; "),
            ("europe/berlin", "perhaps Europe/Berlin; "),
            ("Berlin", "perhaps Europe/Berlin; "),
            ("Shangai", "perhaps Asia/Shanghai; "),
            ("new york", "perhaps America/New_York; "),
            ("X/Y", "names are like Europe/Berlin"),
            ("GMT+8", "names are like Europe/Berlin"),
        ],
    )
    def test_a_time_zone_that_may_have_been_meant(
        self, machine: Machine, zone: str, meant: str
    ) -> None:
        machine.fails(ExitCode.USAGE, meant, "add", "a", "--cron", "0 9 * * *", "--for", "1h",
                      "--timezone", zone)  # fmt: skip

    @pytest.mark.parametrize(
        "written",
        [
            'prewarm = [{name = "one", cron = "0 0 1 1 *", duration = "1h"}]\n',
            '[["gpu".main.prewarm]]\nname = "one"\ncron = "0 0 1 1 *"\nduration = "1h"\n',
            'hosts = ["""\n[[gpu.main.prewarm]]\n"""]\n',
        ],
    )
    def test_what_is_written_unusually_is_not_damaged(self, machine: Machine, written: str) -> None:
        machine.path.write_text(f"[gpu.main]\n{written}")
        before = machine.path.read_text()
        machine.fails(ExitCode.USAGE, "", "remove", "one")
        assert machine.path.read_text() == before
        done = machine.run("add", "two", "--cron", "0 9 * * *", "--for", "1h")
        if done.returncode == 0:  # an addition at the end may be possible where a removal is not
            added = tomllib.loads(machine.path.read_text())["gpu"]["main"].pop("prewarm")
            assert added[-1]["name"] == "two"
            assert machine.path.read_text().startswith(before)
        else:
            assert machine.path.read_text() == before

    def test_an_edit_waits_for_the_one_before(self, machine: Machine) -> None:
        directory = os.open(machine.directory, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            program = machine.start("prewarm", "add", "two", "--cron", "0 9 * * *", "--for", "1h")
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(5)
            machine.write(prewarm("one", ALWAYS))
        finally:
            os.close(directory)
        _, stderr = program.communicate(timeout=100)
        assert (program.returncode, stderr) == (0, "")
        entries = tomllib.loads(machine.path.read_text())["gpu"]["main"]["prewarm"]
        assert [entry["name"] for entry in entries] == ["one", "two"]

    def test_what_the_environment_adds_is_not_removed_from_the_file(self, machine: Machine) -> None:
        machine.write(prewarm("keep", ALWAYS), prewarm("go", ALWAYS))
        before = machine.path.read_text()
        other = {"name": "other", "cron": "0 2 * * *", "duration": "1h", "timezone": "UTC"}
        env = {"QWENCTL_GPU__MAIN__PREWARM": json.dumps([other])}
        done = machine.run("remove", "other", **env)
        assert done.returncode == ExitCode.USAGE
        assert "it comes from a QWENCTL_GPU__* variable" in done.stderr
        assert machine.path.read_text() == before
        assert machine.run("remove", "go", **env).returncode == 0  # though it is hidden
        assert machine.path.read_text() == before.replace(prewarm("go", ALWAYS), "").rstrip() + "\n"

    def test_the_zone_of_this_machine_by_its_file(self, machine: Machine) -> None:
        place = machine.directory / "zoneinfo" / "Asia"
        place.mkdir(parents=True)
        (place / "Shanghai").touch()
        link = machine.directory / "localtime"
        link.symlink_to(place / "Shanghai")
        rest = ("--cron", "0 9 * * *", "--for", "1h")
        done = machine.run("add", "one", *rest, TZ=f":{link}")
        assert (done.returncode, done.stderr) == (0, "")
        assert 'timezone = "Asia/Shanghai"' in machine.path.read_text()
        for unknown in (f":{machine.path}", "CET-1CEST,M3.5.0"):
            done = machine.run("add", "two", *rest, TZ=unknown)
            assert done.returncode == ExitCode.USAGE
            assert "use --timezone" in done.stderr
        assert machine.run("add", "two", *rest, "--timezone", "UTC", TZ=unknown).returncode == 0

    def test_nothing_to_remove(self, machine: Machine) -> None:
        machine.fails(ExitCode.USAGE, "no schedule named 'x'; configured: none", "remove", "x")


class TestCrontab:
    def test_lines_of_this_machines_clock(self, machine: Machine) -> None:
        """Nine in Shanghai is two in Berlin in winter and three in summer: a line for each."""
        machine.write(
            prewarm("morning", 'cron = "0 9 * * mon-fri"\ntimezone = "Asia/Shanghai"\n'
                    'duration = "3h"\nlead = 290\n'),
            off_hours("night", 'cron = "30 0 * * *"\nduration = "6h"\n'),
        )  # fmt: skip
        lines = machine.run("crontab").stdout.splitlines()
        jobs = [line for line in lines if not line.startswith("#")]
        assert [" ".join(line.split()[:5]) for line in jobs] == [
            "55 1 * * 1,2,3,4,5",
            "55 2 * * 1,2,3,4,5",
            "30 0 * * *",
        ]
        command = jobs[0].split()[5:]
        assert command == [str(PROGRAM), "--config", str(machine.path), "prewarm", "run",
                           "morning", "--gpu", "main", "--lead", "300s"]  # fmt: skip
        assert "--lead" not in jobs[2]

    def test_a_line_can_be_run(self, machine: Machine) -> None:
        machine.write(prewarm("all", ALWAYS))
        (job,) = (line for line in machine.run("crontab").stdout.splitlines() if line[0] != "#")
        # As cron does it: five fields, then a line for the shell, from another directory.
        command = job.split(maxsplit=5)[5]
        done = subprocess.run(
            ["sh", "-c", command], cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert machine.leases == ["prewarm:all"]

    def test_many_times_are_one_line_that_comes_often(self, machine: Machine) -> None:
        machine.write(
            prewarm("often", 'cron = "*/10 8-18 * * *"\nduration = "5m"\nlead = "1m"\n'),
            prewarm("odd", 'cron = "1,2,3 7,9,11 * * 1"\nduration = "5m"\nlead = "1m"\n'),
        )
        lines = [line for line in machine.run("crontab").stdout.splitlines() if line[0] != "#"]
        assert [line.split()[0] for line in lines] == ["*/5", "*/5"]
        assert lines[0].endswith("--lead 360s")

    def test_percent_signs_are_not_line_ends(self, machine: Machine) -> None:
        place = machine.directory / "50% off"
        place.mkdir()
        machine.write(prewarm("all", ALWAYS))
        config = machine.path.rename(place / "qwenctl.toml")
        done = machine.run("crontab", "--config", str(config))
        machine.path = config
        assert f"'{machine.directory}/50\\% off/qwenctl.toml'" in done.stdout

    def test_none(self, machine: Machine) -> None:
        machine.silent("crontab")
