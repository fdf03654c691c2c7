"""A Docker daemon of the tests' own, with an image made offline, and a registry beside it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.net import free_port
from tests.support.paths import ROOT

__all__ = ["IMAGE", "DockerEngine", "Registry", "SlowFront", "why_not"]

IMAGE = "qwenctl-test:python"
"""Debian with Python, and `tests/support/service_program.py` as its entry point."""

PROGRAM = ROOT / "tests" / "support" / "service_program.py"
PACKAGES = "python3"
WORDS = "python:bookworm:1"


def why_not() -> str:
    """Why no daemon can be run here; empty if it can."""
    if os.geteuid() != 0:
        return "this machine cannot run dockerd: it needs root"
    for program in ("dockerd", "debootstrap", "docker-registry", "htpasswd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


class DockerEngine:
    """``dockerd`` with its own data, socket and bridge.

    Args:
        options: more of its options.
        size: its data lies on a disk of that many bytes.
    """

    def __init__(self, *options: str, size: int = 0) -> None:
        if reason := why_not():
            pytest.skip(reason)
        self.directory = Path(tempfile.mkdtemp(prefix="qe-"))
        self.host = f"unix://{self.directory}/docker.sock"
        self._options = options
        if size:
            (self.directory / "data").mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
            if subprocess.run([*mount, str(self.directory / "data")], check=False).returncode:
                pytest.skip("this machine cannot mount a disk of its own")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.begin()
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(Exception), contextlib.closing(self.client()) as client:
                client.ping()
                return
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "log").read_text()
                pytest.skip(f"this machine cannot run dockerd: {log[-600:]}")
            time.sleep(0.1)

    def begin(self) -> None:
        """Start the daemon, and do not wait."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd",
                    *("--host", self.host),
                    *("--data-root", str(self.directory / "data")),
                    *("--exec-root", str(self.directory / "exec")),
                    *("--pidfile", str(self.directory / "pid")),
                    *self._options,
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon; its containers end too, unless it is killed or has live-restore."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None
            # A killed daemon leaves its containerd; the next one takes that up.

    def client(self) -> Any:
        from docker import APIClient

        return APIClient(self.host, version="auto", timeout=30)

    def close(self) -> None:
        """Remove everything."""
        with contextlib.suppress(Exception):
            if self.process is None:
                self.start()
            with contextlib.closing(self.client()) as client:
                for one in client.containers(all=True):
                    client.remove_container(one["Id"], force=True)
                for network in client.networks(names=["qwenctl"]):
                    client.remove_network(network["Id"])
        self.stop()
        subprocess.run(["umount", "-Rlq", str(self.directory / "data")], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def load_image(self) -> None:
        """Make `IMAGE` out of Debian's packages; those are fetched once a machine."""
        with contextlib.closing(self.client()) as client:
            with rootfs().open("rb") as file:
                client.import_image(src=file, repository="qwenctl-test", tag="rootfs")
        build = f"FROM qwenctl-test:rootfs\nCOPY {PROGRAM.name} /\nENTRYPOINT"
        build += f' ["python3", "/{PROGRAM.name}"]\n'
        self.build(IMAGE, build, {PROGRAM.name: PROGRAM.read_bytes()})

    def build(self, tag: str, dockerfile: str, files: dict[str, bytes] | None = None) -> None:
        """Build an image from a Dockerfile and the files that it copies."""
        import tarfile

        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for name, content in {"Dockerfile": dockerfile.encode(), **(files or {})}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        context.seek(0)
        with contextlib.closing(self.client()) as client:
            said = list(
                client.build(fileobj=context, custom_context=True, tag=tag, decode=True, rm=True)
            )
        assert not [line for line in said if "error" in line], said


def rootfs() -> Path:
    """A tar file of a small Debian with Python, made once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qwenctl-tests")
    target = cache / f"{WORDS.replace(':', '-')}.tar"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "root")
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if made.returncode:
            pytest.skip(f"debootstrap failed: {made.stdout[-500:]}")
        for superfluous in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(tree / superfluous, ignore_errors=True)
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "-C", str(tree), "-cf", str(part), "."], check=True)
        part.replace(target)
    return target


class Registry:
    """Debian's ``docker-registry`` on loopback.

    Args:
        password: if given, a login as ``user`` with it is wanted.
    """

    def __init__(self, password: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="qr-"))
        self.port = free_port()
        self.login = {"username": "user", "password": password} if password else None
        self.address = f"127.0.0.1:{self.port}"
        auth = ""
        if password:
            hashed = subprocess.run(
                ["htpasswd", "-Bbn", "user", password], capture_output=True, text=True, check=True
            ).stdout
            (self.directory / "htpasswd").write_text(hashed)
            auth = f"auth:\n  htpasswd:\n    realm: tests\n    path: {self.directory}/htpasswd\n"
        (self.directory / "config.yml").write_text(
            f"version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n"
            f"    rootdirectory: {self.directory}/data\nhttp:\n  addr: {self.address}\n{auth}"
        )
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.directory / "config.yml")],
                stdout=log,
                stderr=log,
            )

    def push(self, engine: DockerEngine, image: str, name: str) -> str:
        """Put a local image into the registry under that name, and forget the local one."""
        target = f"{self.address}/{name}"
        with contextlib.closing(engine.client()) as client:
            client.tag(image, target.rpartition(":")[0], target.rpartition(":")[2])
            deadline = time.monotonic() + 30
            while True:
                said = list(client.push(target, stream=True, decode=True, auth_config=self.login))
                errors = [line["error"] for line in said if "error" in line]
                if not errors:
                    break
                # Just started, it may not listen yet.
                assert time.monotonic() < deadline, errors
                time.sleep(0.2)
            client.remove_image(target)
        return target

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class SlowFront:
    """Passes requests on to a registry, and the layers slowly.

    Attributes:
        rate: bytes a second that a layer gets; 0: it hangs.
    """

    def __init__(self, registry: Registry, rate: int) -> None:
        self.rate = rate
        self.layers_asked_for = 0
        self._connections: list[socket.socket] = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with requests.get(
                    f"http://{registry.address}{self.path}",
                    headers={"Accept": self.headers.get("Accept", "*/*")},
                    stream=True,
                    timeout=30,
                ) as answer:
                    self.send_response(answer.status_code)
                    for key in ("Content-Type", "Content-Length", "Docker-Content-Digest"):
                        if key in answer.headers:
                            self.send_header(key, answer.headers[key])
                    self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                    self.end_headers()
                    if self.command == "HEAD":
                        return
                    large = int(answer.headers.get("Content-Length", 0)) > 100_000
                    front.layers_asked_for += large
                    for chunk in answer.iter_content(16384):
                        while large and not front.rate:
                            time.sleep(0.05)
                        try:
                            self.wfile.write(chunk)
                        except OSError:
                            self.close_connection = True
                            return
                        if large:
                            time.sleep(len(chunk) / front.rate)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                connection, address = super().get_request()
                front._connections.append(connection)
                return connection, address

            def handle_error(self, *_: object) -> None:
                pass  # a daemon that broke off

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def break_off(self) -> None:
        """Cut every connection."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.rate = self.rate or 10**9
        self._server.shutdown()
        self._server.server_close()
