"""The gate as a forward-auth endpoint: real servers in front of the node ask it, with the
configurations that docs/reverse-proxies.md gives."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration.proxy.running import (
    KEY,
    PASSWORD,
    RunningProxy,
    gpu,
    password_access,
    running,
)
from tests.support.net import free_port
from tests.support.paths import ROOT
from tests.support.waiting import until

DOC = ROOT / "docs" / "reverse-proxies.md"

PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin:/opt/homebrew/bin"

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {server}
}}
"""

CADDY = """
{{
	admin off
	storage file_system {folder}/caddy
}}
{server}
"""


def example(server: str, port: int, proxy: int) -> str:
    """The configuration that the documentation gives for this server, on our ports."""
    found = re.search(rf"```{server}\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found, f"{DOC} has no example for {server}"
    text = found[1].replace("127.0.0.1:8080", f"127.0.0.1:{proxy}")
    return text.replace("127.0.0.1:80", f"127.0.0.1:{port}")


def fronted(name: str, folder: Path, **settings: object) -> Iterator[tuple[str, RunningProxy]]:
    """A proxy of ours, and that server in front of it."""
    program = shutil.which(name, path=PATH)
    if not program:
        pytest.skip(f"{name} is not installed")
    port = free_port()
    frame, arguments = {
        "nginx": (NGINX, ["-e", str(folder / "error.log"), "-c"]),
        "caddy": (CADDY, ["run", "--adapter", "caddyfile", "--config"]),
    }[name]
    gpus = {"main": gpu(preset="generic")}
    with running(folder / "proxy", gpu=gpus, access=password_access(), **settings) as proxy:
        file, log = folder / "config", folder / "log"
        file.write_text(frame.format(folder=folder, server=example(name, port, proxy.port)))
        with log.open("wb") as output:
            command = [program, *arguments, str(file)]
            server = subprocess.Popen(command, stderr=output, stdout=output)

        def answers() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                return requests.get(f"http://127.0.0.1:{port}/_qwenctl/healthz", timeout=5).ok
            except requests.ConnectionError:
                return False

        try:
            until(answers, 20, f"{name}'s start")
            yield f"http://127.0.0.1:{port}", proxy
        finally:
            server.terminate()
            server.wait(timeout=20)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningProxy]]:
    yield from fronted("nginx", tmp_path_factory.mktemp("nginx"))


@pytest.fixture(scope="module")
def caddy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningProxy]]:
    yield from fronted(
        "caddy", tmp_path_factory.mktemp("caddy"), proxy={"gate_headers": "x-forwarded"}
    )


@pytest.fixture
def proxy(nginx: tuple[str, RunningProxy]) -> RunningProxy:
    return nginx[1]


def test_behind_nginx(nginx: tuple[str, RunningProxy]) -> None:
    off_then_woken_then_forwarded(*nginx)


def test_behind_caddy(caddy: tuple[str, RunningProxy]) -> None:
    off_then_woken_then_forwarded(*caddy)


def off_then_woken_then_forwarded(front: str, proxy: RunningProxy) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    # Asleep: nobody without access gets further; with access, the proxy itself answers.
    assert requests.get(f"{front}/x", timeout=5).status_code == 401
    asleep = requests.get(f"{front}/x", headers=key, timeout=5)
    assert (asleep.status_code, asleep.json()["code"]) == (503, "not_ready")
    assert proxy.untouched()
    # A POST is handed to the proxy, which wakes and holds it.
    held = requests.post(f"{front}/x", data=b"12345", headers=key, timeout=20)
    assert (held.status_code, held.json()["size"]) == (200, 5)
    # On: the server in front talks to the node directly.
    proxy.wait_for("ready")
    direct = requests.post(f"{front}/y?a=1", data=b"123", headers=key, timeout=5).json()
    assert (direct["target"], direct["size"]) == ("/y?a=1", 3)
    names = {name.lower() for name, _ in direct["headers"]}
    assert "authorization" in names, "it went through the proxy, which takes our key out"
    assert requests.get(f"{front}/x", timeout=5).status_code == 401
    with requests.Session() as browser:
        browser.post(f"{front}/_qwenctl/login", data={"password": PASSWORD}, timeout=10)
        assert browser.get(f"{front}/z", timeout=5).json()["target"] == "/z"


def test_what_passes_the_gate_keeps_the_gpu_on(nginx: tuple[str, RunningProxy]) -> None:
    front, proxy = nginx
    proxy.wake()
    proxy.store.release("main", actor="test", only="request:key:ci")
    key = {"Authorization": f"Bearer {KEY}"}

    def leased() -> bool:
        return "request:key:ci" in {lease.name for lease in proxy.snapshot().leases}

    requests.get(f"{front}/quiet", headers=key, timeout=5)  # passive: no use
    requests.post(f"{front}/use", headers=key, timeout=5)
    until(leased, 3, "the lease")


def gate(proxy: RunningProxy, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(proxy.url("/_qwenctl/gate"), headers=named, timeout=5)


def test_the_gate_itself(proxy: RunningProxy) -> None:
    proxy.wake()
    allowed = gate(proxy, X_API_Key=KEY, X_Original_URI="/a%20b?x=1", X_Original_Method="POST")
    assert (allowed.status_code, allowed.content) == (204, b"")
    assert allowed.headers["x-qwenctl-node"] == f"127.0.0.1:{proxy.node_port()}"
    forwarded = gate(proxy, X_API_Key=KEY, X_Forwarded_Uri="/a", X_Forwarded_Method="GET")
    assert forwarded.status_code == 204  # as Caddy and Traefik ask
    assert gate(proxy, X_API_Key="qk_wrong").status_code == 401
    assert gate(proxy, X_API_Key=KEY, X_Original_URI="\xff").status_code == 204


def test_the_gate_does_not_wake(proxy: RunningProxy) -> None:
    proxy.store.block("main", "maintenance:test", None, reason="", actor="test", force_stop=True)
    proxy.wait_for("off")
    proxy.store.unblock("main", actor="test")
    proxy.store.release("main", actor="test")
    refused = gate(proxy, X_API_Key=KEY, X_Original_URI="/x", X_Original_Method="POST")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_ready")
    assert not proxy.snapshot().leases
