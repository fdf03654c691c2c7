"""Page-cache warm-up of weight files: MB/s of ours against `dd` and `vmtouch -t`, all from cold.

Then what it does to the loader: the time of one that maps the files as safetensors does, alone and
with the warm-up beside it; and with the head start that Docker's and Python's start give.

"Cold" is not in this machine's page cache. As root all of it is dropped (/proc/sys/vm/drop_caches),
else only these files are (POSIX_FADV_DONTNEED).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import (
    CannotMeasure,
    Report,
    Row,
    Target,
    main,
    median,
    need,
    scratch,
)
from gpu_node.services.page_cache import THREADS, WarmUp, available_memory

MB = 10**6
SHARDS = 4
OURS, DD, VMTOUCH = "qwenctl warm-up", "dd bs=8M", "vmtouch -t"

USUAL = 128
"""KiB of readahead that a disk has if nobody has chosen another: so on most instances in a cloud."""

HEAD_START = 0.5
"""Seconds; a share of what Docker and the imports of a model server really take."""

LOADER = """
import mmap, sys, time
began = time.perf_counter()
total = 0
for path in sys.argv[1:]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        view = memoryview(mapping)
        for start in range(0, len(view), 64 << 20):  # tensor by tensor, copied as to a GPU
            total += len(bytes(view[start : start + (64 << 20)]))
        view.release()
print(time.perf_counter() - began)
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="runs of each reader")
    parser.add_argument("--size", type=int, default=2048, help="megabytes of all files together")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where to write them; default: TMPDIR"
    )


def run(given: argparse.Namespace) -> Report:
    rounds = 2 if given.quick else given.rounds
    size = min(given.size, 256) if given.quick else given.size
    if given.dir is not None:
        os.environ["TMPDIR"] = str(given.dir)
    with scratch() as directory, contextlib.ExitStack() as disks:
        files = write_model(directory / "model", size * MB)
        if available_memory() < 3 * size * MB:
            raise CannotMeasure(f"{size} MB do not fit into memory often enough; use --size")
        total = sum(Path(file).stat().st_size for file in files) / MB
        tables = {
            f"from cold, {_readahead(directory)} KiB readahead": measure(
                rounds, readers(files), files
            )
        }
        own_disk = ""
        try:
            mounted = disks.enter_context(loop_disk(directory, size * MB))
            few = write_model(mounted / "model", size * MB // 2)
            tables[f"from cold, {USUAL} KiB readahead, as usual"] = measure(
                rounds, readers(few), few
            )
        except (CannotMeasure, OSError) as error:
            own_disk = f"no disk with the usual readahead: {error}"
        loaders: dict[str, Callable[[], float]] = {
            "alone": lambda: load(files),
            "with the warm-up beside it": lambda: load_beside(files, 0),
            f"{HEAD_START:g} s after the warm-up's start": lambda: load_beside(files, HEAD_START),
        }
        loads = measure(rounds, loaders, files)
    report = Report(
        "warmup",
        "Page-cache warm-up",
        {"rounds": rounds, "megabytes": size, "files": SHARDS, "threads": THREADS},
    )
    for title, times in tables.items():
        amount = total if title is next(iter(tables)) else total / 2
        rates = {name: [amount / seconds for seconds in times[name]] for name in times}
        report.tables[title] = [row(name, rates) for name in rates]
        for peer in (DD, VMTOUCH):
            ratio = median(rates[OURS]) / median(rates[peer])
            report.targets.append(Target(f"{title}: MB/s of {peer}'s", round(ratio, 2), 0.9, False))
    alone = median(loads["alone"])
    report.tables["a loader, from cold"] = [
        {
            "loader": name,
            "median s": round(median(loads[name]), 2),
            "longest s": round(max(loads[name]), 2),
            "of alone": round(median(loads[name]) / alone, 2),
        }
        for name in loaders
    ]
    beside = median(loads["with the warm-up beside it"]) / alone
    report.targets.append(
        Target("a loader's time with the warm-up beside it, of alone", round(beside, 2), 1.1)
    )
    if own_disk:
        report.notes.append(own_disk)
    if os.geteuid() != 0:
        report.notes.append("not root: only these files were put out of the page cache")
    report.notes.append("the disk of this machine is virtual, and its host may cache what is read")
    return report


def readers(files: list[str]) -> dict[str, Callable[[], float]]:
    """Our warm-up and its peers, on these files."""
    vmtouch = need("vmtouch", "apt install vmtouch")
    script = 'for f; do dd if="$f" of=/dev/null bs=8M; done'
    return {
        OURS: functools.partial(warm, Path(files[0]).parent),
        DD: functools.partial(command, ["sh", "-c", script, "sh", *files]),
        VMTOUCH: functools.partial(command, [vmtouch, "-t", "-q", *files]),
    }


def row(name: str, rates: dict[str, list[float]]) -> Row:
    own = rates[name]
    return {
        "reader": name,
        "MB/s": round(median(own)),
        "slowest": round(min(own)),
        "fastest": round(max(own)),
        "of dd": round(median(own) / median(rates[DD]), 2),
    }


def _readahead(directory: Path) -> str:
    """The kernel's readahead where the directory is, in KiB."""
    device = directory.stat().st_dev
    name = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for file in (f"{name}/queue/read_ahead_kb", f"{name}/../queue/read_ahead_kb"):
        with contextlib.suppress(OSError):
            return Path(file).read_text().strip()
    return "unknown"


@contextlib.contextmanager
def loop_disk(directory: Path, size: int) -> Iterator[Path]:
    """A disk of our own, whose readahead is what Linux gives to one that says nothing else.

    Raises:
        CannotMeasure: not root, or no loop devices here.
    """
    if os.geteuid() != 0:
        raise CannotMeasure("that takes root")
    image, mounted = directory / "disk", directory / "mounted"
    mounted.mkdir()
    image.touch()
    os.truncate(image, size)
    command([need("mkfs.ext4", "apt install e2fsprogs"), "-q", "-F", str(image)])
    losetup = [need("losetup", "apt install mount"), "--find", "--show", "--direct-io=on"]
    done = subprocess.run([*losetup, str(image)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise CannotMeasure(done.stderr.strip())
    device = done.stdout.strip()
    try:
        queue = Path("/sys/block", Path(device).name, "queue")
        (queue / "read_ahead_kb").write_text(str(USUAL))
        command(["mount", device, str(mounted)])
        try:
            yield mounted
        finally:
            command(["umount", str(mounted)])
    finally:
        command([losetup[0], "--detach", device])


def measure(
    rounds: int, subjects: dict[str, Callable[[], float]], files: list[str]
) -> dict[str, list[float]]:
    """Seconds of each run, every one from cold."""
    times: dict[str, list[float]] = {name: [] for name in subjects}

    def from_cold(subject: Callable[[], float]) -> float:
        make_cold(files)
        return subject()

    measured = {name: functools.partial(from_cold, one) for name, one in subjects.items()}
    names = list(measured)
    for number in range(rounds):
        # Who comes first gets what the disk's host has saved up for a burst.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(measured[name]())
    return times


def write_model(directory: Path, size: int) -> list[str]:
    """Shards of random bytes, and their index, as a model has them."""
    directory.mkdir(parents=True)
    names = [f"model-{n + 1:05}-of-{SHARDS:05}.safetensors" for n in range(SHARDS)]
    weight_map = {f"layer.{n}": name for n, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in names:
        with (directory / name).open("wb") as file:
            for _ in range(size // SHARDS // (8 * MB)):
                file.write(os.urandom(8 * MB))
            file.flush()
            os.fsync(file.fileno())
    return [str(directory / name) for name in names]


def make_cold(files: list[str]) -> None:
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    for name in files:
        with open(name, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def command(line: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    took = time.perf_counter() - began
    if done.returncode:
        raise CannotMeasure(f"{line[0]} failed: {done.stderr.strip()[-300:]}")
    return took


def warm(directory: Path) -> float:
    began = time.perf_counter()
    warm_up = WarmUp(directory)
    warm_up.start()
    if not warm_up.join(300) or warm_up.out_of_memory or warm_up.done < warm_up.total:
        raise CannotMeasure("the warm-up did not read all files")
    return time.perf_counter() - began


def load(files: list[str]) -> float:
    """What the loader itself measures: the start of Python is not of interest."""
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *files], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise CannotMeasure(f"the loader failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def load_beside(files: list[str], head_start: float) -> float:
    warm_up = WarmUp(Path(files[0]).parent)
    warm_up.start()
    try:
        time.sleep(head_start)
        return load(files)
    finally:
        warm_up.stop()
        warm_up.join(60)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
