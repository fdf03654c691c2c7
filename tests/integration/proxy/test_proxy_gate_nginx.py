"""The gate as a forward-auth endpoint: a real nginx in front of the node asks it."""

from __future__ import annotations

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
    free_port,
    gpu,
    password_access,
    running,
    until,
)

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin:/opt/homebrew/bin")

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed")

CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location = /gate {{
      internal;
      proxy_pass http://127.0.0.1:{proxy}/_qwenctl/gate;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_set_header Host $host;
      proxy_set_header X-Original-URI $request_uri;
      proxy_set_header X-Original-Method $request_method;
    }}
    location /_qwenctl/ {{ proxy_pass http://127.0.0.1:{proxy}; proxy_set_header Host $host; }}
    location / {{
      auth_request /gate;
      auth_request_set $node $upstream_http_x_qwenctl_node;
      error_page 403 = @not_now;
      proxy_pass http://$node;
    }}
    location @not_now {{ proxy_pass http://127.0.0.1:{proxy}; proxy_set_header Host $host; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    gpus = {"main": gpu(preset="generic")}
    with running(tmp_path_factory.mktemp("gate"), gpu=gpus, access=password_access()) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def nginx(proxy: RunningProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    file = folder / "nginx.conf"
    file.write_text(CONFIG.format(folder=folder, port=port, proxy=proxy.port))
    assert NGINX
    server = subprocess.Popen(
        [NGINX, "-c", str(file), "-e", str(folder / "error.log")], stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert server.poll() is None, Path(folder / "error.log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/_qwenctl/healthz", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(answers, 10, "nginx' start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_off_then_woken_then_forwarded_by_nginx(nginx: str, proxy: RunningProxy) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    # Asleep: nobody without access gets further; with access, the proxy itself answers.
    assert requests.get(f"{nginx}/x", timeout=5).status_code == 401
    asleep = requests.get(f"{nginx}/x", headers=key, timeout=5)
    assert (asleep.status_code, asleep.json()["code"]) == (503, "not_ready")
    assert proxy.untouched()
    # A POST is handed to the proxy, which wakes and holds it.
    held = requests.post(f"{nginx}/x", data=b"12345", headers=key, timeout=20)
    assert (held.status_code, held.json()["size"]) == (200, 5)
    # On: nginx talks to the node directly.
    proxy.wait_for("ready")
    direct = requests.post(f"{nginx}/y?a=1", data=b"123", headers=key, timeout=5).json()
    assert (direct["target"], direct["size"]) == ("/y?a=1", 3)
    names = {name.lower() for name, _ in direct["headers"]}
    assert "x-forwarded-host" not in names, "it went through the proxy"
    assert requests.get(f"{nginx}/x", timeout=5).status_code == 401
    with requests.Session() as browser:
        browser.post(f"{nginx}/_qwenctl/login", data={"password": PASSWORD}, timeout=10)
        assert browser.get(f"{nginx}/z", timeout=5).json()["target"] == "/z"


def test_what_passes_the_gate_keeps_the_gpu_on(nginx: str, proxy: RunningProxy) -> None:
    proxy.wake()
    proxy.store.release("main", actor="test", only="request:key:ci")
    key = {"Authorization": f"Bearer {KEY}"}

    def leased() -> bool:
        return "request:key:ci" in {lease.name for lease in proxy.snapshot().leases}

    requests.get(f"{nginx}/quiet", headers=key, timeout=5)  # passive: no use
    requests.post(f"{nginx}/use", headers=key, timeout=5)
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
    proxy.store.block("main", "maintenance:test", None, reason="", actor="test", cut=True)
    proxy.wait_for("off")
    proxy.store.unblock("main", actor="test")
    proxy.store.release("main", actor="test")
    refused = gate(proxy, X_API_Key=KEY, X_Original_URI="/x", X_Original_Method="POST")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_ready")
    assert not proxy.snapshot().leases
