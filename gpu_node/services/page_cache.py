"""Read a service's weights into the page cache while the service is still starting.

The loader then finds them in memory. The files are read in the order in which a loader reads them;
parts that another program has read in the meantime are skipped.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from qwenctl.lib.private_file import read_regular

log = logging.getLogger(__name__)

THREADS = 4
"""Network disks have a high latency and a high throughput: some reads must run in parallel."""

BLOCK = 4 * 1024 * 1024
"""Bytes of one read: more than the kernel's readahead, for large requests to the disk."""

PIECE = 16 * 1024 * 1024
"""Bytes that a thread takes at a time; small enough for all threads to read the same file."""

MIN_RESERVE = 1024**3
RESERVE_SHARE = 0.1
"""Memory left free at least: in bytes, and as a share."""

PROGRESS_INTERVAL = 0.25
"""Seconds between two reports of progress."""

_FORMATS = (
    frozenset({".safetensors"}),
    frozenset({".gguf"}),
    frozenset({".bin", ".pt", ".pth", ".ckpt"}),
)
"""Suffixes of weights. Loaders take the first kind that there is, and ignore the others."""

_OTHER_WEIGHTS = frozenset({".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite"})
"""Weights in repositories that no loader on a GPU reads."""

_UNFINISHED = frozenset({".incomplete", ".lock"})


@dataclass(frozen=True)
class WeightFile:
    """A file and its size in bytes."""

    path: Path
    size: int


def weight_files(root: Path) -> list[WeightFile]:
    """List the files that a loader will read below a directory (or the one file), in its order.

    Shards come in the order of the safetensors index, all else by size, the largest first. A model
    in the Hugging Face cache is its snapshot: the one that ``refs/main`` names, else all of them.
    Links are followed, each file and directory once. Unreadable and hidden files are left out,
    unfinished downloads too, and weights in formats that a loader ignores.
    """
    only = ""
    try:
        if root.is_file():
            root, only = root.parent, root.name
    except OSError:
        return []
    indexed: list[WeightFile] = []
    rest: list[WeightFile] = []
    seen: set[tuple[int, int]] = set()
    for directory, names in _walk(root, seen):
        if only:
            names = [name for name in names if name == only and directory == root]
        shards = _shards(directory, names)
        for name in [*shards, *_read(names, shards)]:
            try:
                info = (directory / name).stat()
            except OSError:
                continue
            if info.st_size == 0 or (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            file = WeightFile(directory / name, info.st_size)
            (indexed if name in shards else rest).append(file)
    return indexed + sorted(rest, key=lambda file: (-file.size, str(file.path)))


def _walk(root: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each directory once, links followed, with the names of its files."""
    stack = [root]
    while stack:
        directory = stack.pop()
        try:
            info = directory.stat()
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        files, directories = [], []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    directories.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
            except OSError:  # a loop of links, for instance
                continue
        if {"blobs", "snapshots"} <= set(directories):
            stack += reversed(_snapshots(directory))
        else:
            yield directory, files
            stack += [directory / name for name in reversed(directories)]


def _snapshots(model: Path) -> list[Path]:
    """Return the snapshot in use of a model in the Hugging Face cache, or all of them."""
    snapshots = model / "snapshots"
    try:
        main = snapshots / read_regular(model / "refs" / "main").decode().strip()
        if main.parent == snapshots and main.is_dir():
            return [main]
    except (OSError, ValueError):
        pass
    try:
        return sorted(snapshots.iterdir())
    except OSError:
        return []


def _shards(directory: Path, names: list[str]) -> list[str]:
    """List the files that a safetensors index names, in a loader's order: by name."""
    found: set[str] = set()
    for name in names:
        if name.endswith(".safetensors.index.json"):
            try:
                found.update(json.loads(read_regular(directory / name))["weight_map"].values())
            except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
                continue
    return sorted(found.intersection(names))


def _read(names: list[str], shards: list[str]) -> list[str]:
    """List the files of a directory that a loader reads besides the shards of an index."""
    suffixes = {name: Path(name).suffix.lower() for name in names}
    present = set(suffixes.values())
    ignored = {*_OTHER_WEIGHTS, *_UNFINISHED}
    for number, formats in enumerate(_FORMATS):
        if formats & present:
            ignored.update(*_FORMATS[number + 1 :])
            break
    if shards:
        ignored |= _FORMATS[0]  # consolidated.safetensors holds the same once more
    return [name for name in names if suffixes[name] not in ignored and name not in shards]


def available_memory() -> int:
    """Return the bytes that can be used without swapping; page cache counts as available."""
    return int(psutil.virtual_memory().available)


# ---------------------------------------------------------------- residency

_PAGE = mmap.PAGESIZE


def _find_mincore() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    function.restype = ctypes.c_int
    return function


_mincore = _find_mincore()


def resident_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """Return how many bytes of that part of an open file are in the page cache.

    None where the kernel does not tell: only the owner or a user who may write the file learns it
    (mincore(2)). ``offset`` must be a multiple of the page size.
    """
    if _mincore is None or length <= 0 or not _may_ask(descriptor):
        return None
    pages = (length + _PAGE - 1) // _PAGE
    vector = ctypes.create_string_buffer(pages)
    try:
        # A private mapping is writable without the file's being so, which ctypes needs for the
        # address; nothing is written.
        with mmap.mmap(
            descriptor,
            length,
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=offset,
        ) as mapping:
            first = ctypes.c_char.from_buffer(mapping)
            try:
                if _mincore(ctypes.addressof(first), length, vector) != 0:
                    return None
            finally:
                del first  # else the mapping cannot be closed
    except (OSError, ValueError):  # shorter by now, or on a file system without mappings
        return None
    return min(length, (pages - vector.raw.count(0)) * _PAGE)


def _may_ask(descriptor: int) -> bool:
    # For all others the kernel says that everything is resident.
    try:
        if os.geteuid() in (0, os.fstat(descriptor).st_uid):
            return True
        return os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)
    except (OSError, NotImplementedError):
        return False


# ---------------------------------------------------------------- warm-up


class WarmUp:
    """Reads all weight files below a path into the page cache, once.

    It ends when all is read, when the memory that may be used for it is full, or when `stop` is
    called. A file that is gone, has shrunk or is not permitted does not hinder the rest.

    Args:
        path: the directory, or one file.
        on_progress: called with the bytes in memory and all bytes, from other threads, several
            times a second and once at the end. All is less than at first when files vanish.
        available: bytes of memory that may be used, page cache included.
        reserve: how many of them to leave; default: a tenth of the memory, at least 1 GiB.
        threads: how many read at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        on_progress: Callable[[int, int], None] | None = None,
        *,
        available: Callable[[], int] = available_memory,
        reserve: int | None = None,
        threads: int = THREADS,
    ) -> None:
        self._path = Path(path)
        self._on_progress = on_progress
        self._available = available
        if reserve is None:
            reserve = max(MIN_RESERVE, int(psutil.virtual_memory().total * RESERVE_SHARE))
        self._reserve = reserve
        self._thread_count = threads
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.done = 0
        """Bytes that were found in memory or have been read into it."""
        self.total = 0
        """Bytes of all the files; 0 before they have been looked for."""
        self.read = 0
        """Bytes that were read here."""
        self.out_of_memory = False
        """Whether it ended early because memory would have run out."""
        self._claimed = 0
        self._began = self._ended = 0.0
        self._told = float("-inf")
        self._pieces: Iterator[tuple[WeightFile, int, int]] = iter(())
        self._gone: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="page-cache", daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds that it has been at work, or was."""
        return (self._ended or time.monotonic()) - self._began if self._began else 0.0

    @property
    def rate(self) -> float:
        """Megabytes (10⁶ bytes) a second that were read, so far."""
        return self.read / 1e6 / self.seconds if self.seconds > 0 else 0.0

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End as soon as the reads under way return; returns at once."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it has come. Only after `start`."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._began = time.monotonic()
        files = weight_files(self._path)
        self.total = sum(file.size for file in files)
        self._pieces = (
            (file, offset, min(PIECE, file.size - offset))
            for file in files
            for offset in range(0, file.size, PIECE)
        )
        count = min(self._thread_count, max(1, self.total // PIECE))
        others = [threading.Thread(target=self._work, daemon=True) for _ in range(count - 1)]
        for other in others:
            other.start()
        self._work()
        for other in others:
            other.join()
        self._ended = time.monotonic()
        self._tell(last=True)
        if self.total:
            self._log_end()

    def _log_end(self) -> None:
        why = ""
        if self.out_of_memory:
            why = "; the rest would not fit into memory"
        elif self._stop.is_set():
            why = "; stopped"
        log.info(
            "%s: %.1f of %.1f GB in memory, %.1f GB read in %.1f s (%.0f MB/s)%s",
            self._path,
            self.done / 1e9,
            self.total / 1e9,
            self.read / 1e9,
            self.seconds,
            self.rate,
            why,
        )

    def _work(self) -> None:
        buffer = memoryview(mmap.mmap(-1, BLOCK))
        while (piece := self._next()) is not None:
            self._warm(*piece, buffer)
            self._tell()

    def _next(self) -> tuple[WeightFile, int, int] | None:
        with self._lock:
            while not self._stop.is_set() and not self.out_of_memory:
                piece = next(self._pieces, None)
                if piece is None:
                    return None
                if piece[0].path in self._gone:
                    self.total -= piece[2]
                    continue
                # Warm pages count as available; later pieces must not push them out.
                if self._claimed + piece[2] > self._available() - self._reserve:
                    self.out_of_memory = True
                    return None
                self._claimed += piece[2]
                return piece
        return None

    def _warm(self, file: WeightFile, offset: int, length: int, buffer: memoryview) -> None:
        done = 0
        try:
            # A file that has become a pipe in the meantime must not block.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._give_up(file, length)
            return
        try:
            if resident_bytes(descriptor, offset, length) == length:
                done = length
                self._count(length, read=0)
            elif hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_SEQUENTIAL)
            while done < length and not self._stop.is_set():
                got = os.preadv(descriptor, [buffer[: length - done]], offset + done)
                if got == 0:  # it is shorter now
                    self._give_up(file, length - done)
                    return
                done += got
                self._count(got, read=got)
        except OSError:
            self._give_up(file, length - done)
        finally:
            os.close(descriptor)

    def _count(self, done: int, read: int) -> None:
        with self._lock:
            self.done += done
            self.read += read

    def _give_up(self, file: WeightFile, missing: int) -> None:
        """Leave out the rest of the file."""
        with self._lock:
            self._gone.add(file.path)
            self.total -= missing

    def _tell(self, *, last: bool = False) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        with self._lock:
            if not last and now - self._told < PROGRESS_INTERVAL:
                return
            self._told = now
            done, total = self.done, self.total
        self._on_progress(done, total)
