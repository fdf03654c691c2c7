from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from gpu_node.services.orphans import MARK, OrphanKiller, kill_orphans


def test_a_broken_pipe_kills_what_is_guarded_and_nothing_else() -> None:
    guarded = subprocess.Popen(["sleep", "60"], start_new_session=True)
    released = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        orphans = OrphanKiller()
        orphans.add(guarded.pid)
        orphans.add(released.pid)
        orphans.discard(released.pid)
        orphans.close()
        assert guarded.wait(5) == -9
        assert released.poll() is None
    finally:
        guarded.kill()
        released.kill()
        released.wait()


def test_marked_processes_are_killed_wherever_they_went() -> None:
    mark = f"test-{os.getpid()}-{time.monotonic()}"
    nested = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True).wait()"
    mine = subprocess.Popen([sys.executable, "-c", nested], env={**os.environ, MARK: mark})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: mark + "x"})
    try:
        deadline = time.monotonic() + 5
        while not (children := psutil.Process(mine.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # Until it has become `sleep` the child still shares its parent's memory.
        while children[0].name() != "sleep":
            time.sleep(0.01)
        assert kill_orphans(mark) == 2
        assert mine.wait(5) == -9
        assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE
        assert other.poll() is None
        assert kill_orphans(mark) == 0
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
