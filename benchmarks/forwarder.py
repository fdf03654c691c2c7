"""The forwarder against nginx, configurable-http-proxy and Caddy, in front of the same upstream.

Requests a second, latency added to that of the upstream itself, processor time a request; then the
upload and download of one large body, with the memory the proxy needed for it.

Each proxy runs on one core, the load generator and the upstream on the other. All proxies pass
through the same rounds in turn. Ours is `qwenctl serve` with everything on: rules, leases, metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import (
    HERE,
    LOAD_CORE,
    SERVER_CORE,
    CannotMeasure,
    Report,
    Row,
    Target,
    alternate,
    children,
    free_port,
    main,
    median,
    need,
    pinned,
    wait_port,
)
from benchmarks.product import Product, environment, product

OURS, DIRECT = "qwenctl", "(upstream itself)"

CHP = "configurable-http-proxy"
CHP_VERSION = "5.3.0"

BODY = "hello from a small page that never changes"
"""The upstream's answer in the request measurement."""

LEAST = 1.75
"""Requests a second as a multiple of configurable-http-proxy's: what a prototype reached."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all proxies")
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32], help="at once")
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the large body")
    parser.add_argument("--caddy", default="caddy", help="Caddy's program; left out if not there")


def run(given: argparse.Namespace) -> Report:
    rounds, seconds, mebibytes = given.rounds, given.seconds, given.mebibytes
    if given.quick:
        rounds, seconds, mebibytes = 2, 1, 256
    for program, package in (("wrk", "wrk"), ("nginx", "nginx-light"), ("taskset", "util-linux")):
        need(program, f"apt-get install {package}")
    chp = chp_program()
    os.sched_setaffinity(0, {LOAD_CORE})  # inherited by all that is not pinned elsewhere
    report = Report(
        "forwarder",
        "Forwarder",
        {"rounds": rounds, "seconds": seconds, "body_bytes": len(BODY), "large_mib": mebibytes},
    )
    with ready(small_service) as running, proxies(running, chp, given.caddy) as subjects:
        for connections in given.connections:
            measure_requests(report, subjects, rounds, seconds, connections)
    with ready(large_service) as running, proxies(running, chp, given.caddy) as subjects:
        measure_transfers(report, subjects, min(rounds, 3), mebibytes << 20)
    report.notes += [
        "the upstream shares its core with the load generator, which bounds the fastest peers",
        "CPU µs is the proxy's own processor time a request, steadier than requests/s on a busy machine",
    ]
    return report


@dataclass(frozen=True)
class Subject:
    """One proxy, or the upstream itself."""

    name: str
    port: int
    processes: tuple[psutil.Process, ...] = ()

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(t.user + t.system for t in times))

    def forget_peak(self) -> None:
        for process in self.processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """The largest resident memory since `forget_peak`, in MiB."""
        pages = [Path(f"/proc/{process.pid}/status").read_text() for process in self.processes]
        return sum(int(re.findall(r"VmHWM:\s+(\d+)", page)[0]) for page in pages) / 1024


# The upstreams: services of our instance, which the peers use too.


def small_service(directory: Path) -> tuple[Sequence[str], int]:
    """nginx with a small page."""
    port = free_port()
    config = nginx_config(
        directory / "upstream",
        f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{BODY}'; }} }}",
    )
    return pinned(LOAD_CORE, [nginx(), "-c", str(config)]), port


def large_service(_: Path) -> tuple[Sequence[str], int]:
    """The program that takes and sends large bodies."""
    port = free_port()
    program = str(HERE / "bulk_upstream.py")
    return pinned(LOAD_CORE, [sys.executable, program, "--port", str(port)]), port


@contextlib.contextmanager
def ready(service: Callable[[Path], tuple[Sequence[str], int]]) -> Iterator[Product]:
    """A proxy with a GPU that is on."""
    with product(service) as running:
        running.wake()
        running.wait_phase("ready")
        yield running


def nginx() -> str:
    return need("nginx", "apt-get install nginx-light")


def nginx_config(prefix: Path, server: str) -> Path:
    """The configuration of one nginx worker in the foreground, in a directory of its own."""
    prefix.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {prefix}/{kind};" for kind in kinds)
    config = prefix / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        f"""\
{user}
daemon off;
worker_processes 1;
pid {prefix}/pid;
error_log {prefix}/error.log;
events {{ worker_connections 1024; }}
http {{
access_log off;
keepalive_requests 1000000000;
client_max_body_size 0;
{temporary}
{server}
}}
"""
    )
    return config


# The proxies


def chp_program() -> list[str]:
    """configurable-http-proxy's command; npm installs it into the user's cache at the first use.

    Raises:
        CannotMeasure: no Node.js, or npm failed.
    """
    node = need("node", "apt-get install nodejs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    prefix = cache / "qwenctl-bench" / f"chp-{CHP_VERSION}"
    program = prefix / "node_modules" / CHP / "bin" / CHP
    if not program.is_file():
        prefix.mkdir(parents=True, exist_ok=True)
        npm = need("npm", "apt-get install npm")
        command = [npm, "install", "--no-audit", "--no-fund", f"{CHP}@{CHP_VERSION}"]
        done = subprocess.run(
            [*command, "--prefix", str(prefix)], capture_output=True, text=True, timeout=300
        )
        if done.returncode or not program.is_file():
            raise CannotMeasure(f"npm could not install {CHP}: {done.stderr.strip()[-300:]}")
    return [node, str(program)]


@contextlib.contextmanager
def proxies(running: Product, chp: Sequence[str], caddy: str) -> Iterator[Mapping[str, Subject]]:
    """All proxies in front of the running product's service, ours first."""
    target = f"127.0.0.1:{running.service_port}"
    ports = {name: free_port() for name in ("nginx", CHP, "Caddy", "CHP's API")}
    config = nginx_config(
        running.directory / "peer",
        f"""\
upstream up {{ server {target}; keepalive 64; keepalive_requests 1000000000; }}
server {{
  listen 127.0.0.1:{ports["nginx"]};
  location / {{
    proxy_pass http://up;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
  }}
}}""",
    )
    api = ["--api-ip", "127.0.0.1", "--api-port", str(ports["CHP's API"]), "--log-level", "error"]
    listen = ["--ip", "127.0.0.1", "--port", str(ports[CHP])]
    commands = {
        "nginx": [nginx(), "-c", str(config)],
        CHP: [*chp, *listen, *api, "--default-target", f"http://{target}"],
    }
    if shutil.which(caddy):
        caddyfile = running.directory / "Caddyfile"
        caddyfile.write_text(
            "{\nadmin off\nauto_https off\n}\n"
            f"http://:{ports['Caddy']} {{\nbind 127.0.0.1\nreverse_proxy {target}\n}}\n"
        )
        commands["Caddy"] = [caddy, "run", "--adapter", "caddyfile", "--config", str(caddyfile)]
    home = {"HOME": str(running.directory), "XDG_DATA_HOME": str(running.directory / "caddy")}
    env = {**environment(), **home, "GOMAXPROCS": "1"}
    with children() as spawn:
        started = {
            name: spawn(pinned(SERVER_CORE, command), cwd=running.directory, env=env)
            for name, command in commands.items()
        }
        subjects = {
            DIRECT: Subject(DIRECT, running.service_port),
            OURS: Subject(OURS, running.port, (psutil.Process(running.process.pid),)),
        }
        for name, process in started.items():
            wait_port(ports[name], process, name)
            root = psutil.Process(process.pid)
            subjects[name] = Subject(name, ports[name], (root, *root.children(recursive=True)))
        yield subjects


# Requests


@dataclass(frozen=True)
class Load:
    """What one run of wrk says: requests a second, ms, ms, µs of the proxy's processor time."""

    rate: float
    p50: float
    p99: float
    cpu: float


def measure_requests(
    report: Report, subjects: Mapping[str, Subject], rounds: int, seconds: int, connections: int
) -> None:
    runs: dict[str, list[Load]] = {name: [] for name in subjects}
    load = {
        name: functools.partial(_load, subject, seconds, connections)
        for name, subject in subjects.items()
    }
    for _ in alternate(
        1, {n: functools.partial(_load, s, 1, connections) for n, s in subjects.items()}
    ):
        pass  # warm up: connections, just-in-time compilers, caches
    for name, result in alternate(rounds, load):
        runs[name].append(result)
    middle = {
        name: Load(
            *(median([getattr(r, f) for r in results]) for f in ("rate", "p50", "p99", "cpu"))
        )
        for name, results in runs.items()
    }
    # The ratio within each round, then the median: what slows the machine for a while, slows both.
    ratio = {
        name: median([a.rate / b.rate for a, b in zip(results, runs[CHP])])
        for name, results in runs.items()
    }
    floor = middle[DIRECT]
    rows: list[Row] = []
    for name, m in middle.items():
        proxied = name != DIRECT
        rows.append(
            {
                "proxy": name,
                "req/s": round(m.rate),
                "of CHP": round(ratio[name], 2),
                "p50 ms": round(m.p50, 3),
                "p99 ms": round(m.p99, 3),
                "added p50": round(m.p50 - floor.p50, 3) if proxied else None,
                "added p99": round(m.p99 - floor.p99, 3) if proxied else None,
                "CPU µs": round(m.cpu, 1) if proxied else None,
            }
        )
    report.tables[f"{connections} connection{'s' * (connections > 1)}, kept alive"] = rows
    if connections > 1:
        what = f"requests/s of {CHP}'s, {connections} connections"
        report.targets.append(Target(what, round(ratio[OURS], 2), LEAST, at_most=False))


def _load(subject: Subject, seconds: int, connections: int) -> Load:
    before = subject.cpu()
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"),
            f"http://127.0.0.1:{subject.port}/",
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    used = subject.cpu() - before
    text = done.stdout
    if done.returncode or "Non-2xx" in text or "Socket errors" in text:
        raise CannotMeasure(f"wrk on {subject.name}: {text}{done.stderr}")
    total = int(_find(r"(\d+) requests in", text)[0])
    p50, p99 = (_milliseconds(*_find(rf" {n}%\s+([\d.]+)(us|ms|s)", text)) for n in (50, 99))
    return Load(float(_find(r"Requests/sec:\s+([\d.]+)", text)[0]), p50, p99, used / total * 1e6)


def _find(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if not match:
        raise CannotMeasure(f"wrk did not say {pattern!r}: {text}")
    return match.groups()


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


# Large bodies


def measure_transfers(
    report: Report, subjects: Mapping[str, Subject], rounds: int, size: int
) -> None:
    rows: dict[str, Row] = {name: {"proxy": name} for name in subjects}
    for direction, transfer in (("upload", upload), ("download", download)):
        rates: dict[str, list[float]] = {name: [] for name in subjects}
        peaks: dict[str, list[float]] = {name: [] for name in subjects}

        turns = {
            name: functools.partial(_transfer, transfer, subject, size)
            for name, subject in subjects.items()
        }
        for name, (rate, peak) in alternate(rounds, turns):
            rates[name].append(rate)
            peaks[name].append(peak)
        for name, row in rows.items():
            chp = median([a / b for a, b in zip(rates[name], rates[CHP])])
            row[f"{direction} MB/s"] = round(median(rates[name]))
            row[f"{direction} of CHP"] = round(chp, 2)
            row[f"{direction} RSS MiB"] = round(max(peaks[name])) if name != DIRECT else None
    report.tables[f"one body of {size >> 20} MiB"] = list(rows.values())


def _transfer(
    transfer: Callable[[int, int], float], subject: Subject, size: int
) -> tuple[float, float]:
    """MB/s, and the proxy's peak memory in MiB."""
    subject.forget_peak()
    try:
        seconds = transfer(subject.port, size)
    except OSError as error:
        raise CannotMeasure(f"{transfer.__name__} through {subject.name}: {error}") from None
    return size / seconds / 1e6, subject.peak()


def upload(port: int, size: int) -> float:
    """Seconds from the first byte sent to the answer."""
    chunk = bytes(256 << 10)
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(120)
        began = time.perf_counter()
        connection.sendall(_head(port, "PUT", "/sink", f"Content-Length: {size}\r\n"))
        left = size
        while left:
            part = chunk[: min(left, len(chunk))]
            connection.sendall(part)
            left -= len(part)
        answer = connection.recv(4096)
        took = time.perf_counter() - began
    if b" 204 " not in answer.split(b"\r\n", 1)[0]:
        raise OSError(f"{answer[:200]!r}")
    return took


def download(port: int, size: int) -> float:
    """Seconds from the request to the last byte."""
    buffer = bytearray(1 << 20)
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(120)
        began = time.perf_counter()
        connection.sendall(_head(port, "GET", f"/{size}"))
        got, head = 0, b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(65536)
            if not part:
                raise OSError(f"{head[:200]!r}")
            head += part
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < size and (count := connection.recv_into(buffer)):
            got += count
        took = time.perf_counter() - began
    if got != size or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise OSError(f"{got} bytes of {size}; {head[:200]!r}")
    return took


def _head(port: int, method: str, path: str, more: str = "") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{more}Connection: close\r\n\r\n"
    return lines.encode()


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
