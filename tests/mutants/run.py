"""Plant faults in copies of the source, one at a time, and see that a test fails.

    python tests/mutants/run.py [--only TEXT] [--jobs N] [--json FILE]

`mutants.toml` has the faults: by file, each with the text to replace, its replacement, and the tests
that have to notice. A mutant is killed if one of those tests fails. The exit code is 1 if one
survives that is not in the table as equivalent, and 2 if a text is not found exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.toml")

TIMEOUT = 600.0
"""Seconds after which a run of the tests counts as a failure: many a fault makes a test wait."""


@dataclass(frozen=True)
class Mutant:
    """A fault to plant."""

    name: str
    file: str
    find: str
    put: str
    tests: tuple[str, ...]
    slow: bool = False
    """Whether its tests include slow ones, such as those with a Docker Engine."""
    equivalent: str = ""
    """Why no test can notice; empty: a test has to."""

    def planted(self, source: str) -> str:
        """Return the source with the fault."""
        return source.replace(self.find, self.put)

    def fits(self) -> bool:
        """Return whether the text to replace is there exactly once."""
        file = ROOT / self.file
        return file.exists() and file.read_text("utf-8").count(self.find) == 1


def read_table() -> list[Mutant]:
    """Return the mutants of the table."""
    groups = tomllib.loads(TABLE.read_text("utf-8"))["group"]
    return [
        Mutant(
            file=group["file"],
            tests=tuple(group["tests"]),
            slow=group.get("slow", False),
            **mutant,
        )
        for group in groups
        for mutant in group["mutant"]
    ]


@contextlib.contextmanager
def copy_of_source() -> Iterator[Path]:
    """Yield a copy of the files that git knows or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        for name in filter(None, listed.stdout.split("\0")):
            if (source := ROOT / name).is_file():
                target = Path(directory, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        yield Path(directory)


def survives(mutant: Mutant, tree: Path) -> bool:
    """Return whether the mutant's tests pass with the fault in this copy of the source."""
    file = tree / mutant.file
    source = file.read_text("utf-8")
    file.write_text(mutant.planted(source), "utf-8")
    chosen = "not browser" if mutant.slow else "not slow and not browser"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", chosen]
    command = [sys.executable, "-m", "pytest", *options, *mutant.tests]
    # The copy is imported, by the tests' own processes too, though this one is installed.
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            file.write_text(source, "utf-8")
    if process.returncode not in (0, 1, 2):  # 2: the fault broke an import
        raise RuntimeError(f"{mutant.name}: pytest could not run:\n{output[-2000:]}")
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="those with it in file or name")
    parser.add_argument("--jobs", metavar="N", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result there")
    given = parser.parse_args()
    mutants = [each for each in read_table() if given.only in f"{each.file}: {each.name}"]
    stale = [each for each in mutants if not each.fits()]
    for each in stale:
        print(f"its text is not there once: {each.file}: {each.name}", file=sys.stderr)
    mutants = [each for each in mutants if each not in stale]
    code = report(mutants, run(mutants, given.jobs), given.json)
    return 2 if stale or not mutants else code


def run(mutants: list[Mutant], jobs: int) -> dict[Mutant, bool]:
    """Return for each mutant whether it survives."""
    with contextlib.ExitStack() as stack:
        trees: SimpleQueue[Path] = SimpleQueue()
        for _ in range(jobs):
            trees.put(stack.enter_context(copy_of_source()))
        done, lock = iter(range(1, len(mutants) + 1)), threading.Lock()

        def attempt(mutant: Mutant) -> bool:
            tree, began = trees.get(), time.monotonic()
            try:
                survived = survives(mutant, tree)
            finally:
                trees.put(tree)
            with lock:
                word = "SURVIVES" if survived else "killed"
                took = time.monotonic() - began
                print(f"{next(done):3}/{len(mutants)} {word:8} {took:5.1f} s  {mutant.file}: {mutant.name}", flush=True)  # fmt: skip
            return survived

        with ThreadPoolExecutor(jobs) as threads:
            return dict(zip(mutants, threads.map(attempt, mutants)))


def report(mutants: list[Mutant], survived: dict[Mutant, bool], file: Path | None) -> int:
    """Print the kill rate by module; return the exit code."""
    rows: dict[str, list[int]] = {}
    for mutant in mutants:
        row = rows.setdefault(mutant.file, [0, 0, 0])
        row[0] += 1
        row[1] += not survived[mutant]
        row[2] += survived[mutant] and bool(mutant.equivalent)
    counted = sum(planted - equal for planted, _, equal in rows.values())
    killed = sum(row[1] for row in rows.values())
    print(f"\n{'module':50} planted  killed  equivalent")
    for name, (planted, dead, equal) in sorted(rows.items()):
        print(f"{name:50} {planted:7} {dead:7} {equal:11}")
    print(f"kill rate without equivalents: {killed}/{counted} = {killed / max(1, counted):.1%}")
    left = [each for each in mutants if survived[each] and not each.equivalent]
    for mutant in left:
        print(f"survives: {mutant.file}: {mutant.name}")
    if file:
        file.write_text(json.dumps({"rows": rows, "survive": [each.name for each in left]}))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
