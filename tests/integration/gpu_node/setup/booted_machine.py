"""systemd as the first process of a machine of its own, made of this machine's files.

Namespaces keep it apart: its own processes, mounts, cgroups and host name. Its root is an overlay over
ours, whose changes live in memory and are gone with it. The network is shared, so that tests can be
its proxy. Nothing is downloaded and no image is built; it boots in a few seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.paths import ROOT

SYSTEMD = next(
    (p for p in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if Path(p).exists()), ""
)

OUTER = r"""
# In a mount namespace of its own, but outside the new machine's cgroup.
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$T"
mkdir "$T/cgroup" "$T/up" "$T/work" "$T/root"
mount -t cgroup2 cgroup2 "$T/cgroup"
C="$T/cgroup/qwenctl-test-$$"
mkdir "$C"
clean() { find "$C" -depth -type d -exec rmdir {} + 2>/dev/null || true; }
trap clean EXIT
export R="$T/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$T/up,workdir=$T/work" "$R"
sh -c 'echo $$ > "$0/cgroup.procs"; exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -euc "$INNER"' "$C" || true
# What was killed takes a moment to be gone.
for _ in 1 2 3 4 5 6 7 8 9 10; do clean; [ -d "$C" ] || break; sleep 0.2; done
"""

INNER = r"""
hostname qwenctl-test
mount -t proc proc "$R/proc"
mount --bind "$R/proc/sys" "$R/proc/sys"
mount -o remount,ro,bind "$R/proc/sys"
mount -t sysfs -o ro sysfs "$R/sys"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
for d in null zero full random urandom tty; do
  touch "$R/dev/$d"; mount --bind "/dev/$d" "$R/dev/$d"
done
mkdir "$R/dev/shm"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs tmpfs "$R/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$R/run"
mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
for p in $BIND; do mkdir -p "$R$p"; mount --rbind "$p" "$R$p"; done
for p in $OPEN; do chmod o+rx "$R$p"; done
# None of this machine's own services.
rm -rf "$R/etc/systemd/system" "$R/var/log/journal"
mkdir -p "$R/etc/systemd/system/multi-user.target.d" "$R/var/log"
for unit in $MASK; do ln -s /dev/null "$R/etc/systemd/system/$unit"; done
cp -r "$FILES/." "$R/etc/systemd/system/"
mkdir -p "$R/etc/qwenctl"
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$R" "$SYSTEMD" --unit=multi-user.target
"""

MASK = [
    "systemd-firstboot.service",
    "systemd-machine-id-commit.service",
    "systemd-sysctl.service",
    "systemd-udevd.service",
    "systemd-modules-load.service",
    "systemd-udev-trigger.service",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
    "systemd-resolved.service",
    "systemd-logind.service",
    "docker.socket",
    "containerd.service",
    "cron.service",
    "ssh.service",
    "dbus.service",
    "dbus.socket",
    "nginx.service",
    "redis-server.service",
    "getty.target",
    "e2scrub_reap.service",
]


class CannotBoot(Exception):
    """Why there can be no such machine here."""


class Machine:
    """One booted system.

    Args:
        directory: an empty directory, for its root.
        units: more files below ``/etc/systemd/system``.
    """

    def __init__(self, directory: Path, units: dict[str, str]) -> None:
        if os.geteuid() != 0:
            raise CannotBoot("only root may")
        for program in ("unshare", "nsenter", "systemctl", "runuser", "useradd"):
            if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
                raise CannotBoot(f"there is no {program}")
        if not SYSTEMD:
            raise CannotBoot("systemd is not installed")
        files, top = directory / "units", directory / "machine"
        top.mkdir()
        files.mkdir()
        for name, text in units.items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            (files / name).write_text(text)
        needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix)]
        device = Path("/").stat().st_dev
        if any(p.parts[1:2] == ("tmp",) for p in needed):
            raise CannotBoot("the checkout is below /tmp, which units with PrivateTmp do not see")
        self._log = directory / "boot.log"
        with self._log.open("w") as log:
            self._outer = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", OUTER],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "T": str(top),
                    "INNER": INNER,
                    "SYSTEMD": SYSTEMD,
                    "FILES": str(files),
                    "MASK": " ".join(set(MASK) - set(units)),
                    "BIND": " ".join(str(p) for p in needed if p.stat().st_dev != device),
                    "OPEN": " ".join(
                        sorted({str(parent) for p in needed for parent in (p, *p.parents)})
                    ),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = 0
        try:
            self._pid = self.wait(self._find, "systemd does not begin")
            self.wait(
                lambda: (
                    self.run("systemctl", "is-system-running").stdout.strip()
                    in ("running", "degraded")
                ),
                "the boot does not end",
                60,
            )
        except BaseException:
            self.close()
            raise

    def _find(self) -> int:
        if self._outer.poll() is not None:
            words = self._log.read_text().strip().splitlines()
            raise CannotBoot(words[-1] if words else "systemd ends at once")
        for process in psutil.Process(self._outer.pid).children(recursive=True):
            try:
                if process.name() == "systemd":
                    return process.pid
            except psutil.Error:
                continue
        return 0

    def run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """A command inside."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._pid), "-m", "-p", "-u", "-i", "-C", "-r", "-w", *command],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{Path(sys.prefix, 'bin')}:/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
            },
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def path(self, inside: str) -> Path:
        """A file of its, from out here."""
        return Path(f"/proc/{self._pid}/root{inside}")

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output", "cat", "--lines", "60").stdout

    def wait(self, what: Callable[[], object], problem: str, timeout: float = 30.0) -> object:
        """Wait until ``what()`` is true, and return it."""
        deadline = time.monotonic() + timeout
        while not (found := what()):
            assert time.monotonic() < deadline, f"{problem}\n{self.journal() if self._pid else ''}"
            time.sleep(0.2)
        return found

    def wait_off(self, timeout: float = 60.0) -> None:
        """Wait until the machine has gone off by itself."""
        self._outer.wait(timeout)

    def close(self) -> None:
        """Pull the plug."""
        if self._outer.poll() is None:
            for process in psutil.Process(self._outer.pid).children(recursive=True):
                try:
                    if process.name() == "unshare":
                        process.kill()  # its child, the machine's first process, goes with it
                except psutil.Error:
                    continue
            try:
                self._outer.wait(20)
            except subprocess.TimeoutExpired:
                self._outer.kill()
                self._outer.wait()
