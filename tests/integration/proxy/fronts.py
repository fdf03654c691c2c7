"""Real nginx and Caddy in front of a proxy, with the examples of docs/reverse-proxies.md."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

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
  proxy_read_timeout 2s; proxy_send_timeout 2s;
  {server}
}}
"""
"""nginx's time-outs of 60 s are 2 s here, so that an example that relies on them fails soon."""

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
    # Caddy: any host, as for nginx.
    text = re.sub(r"^(http://127.0.0.1:80|gpu.example.com) {", f"http://:{port} {{", text)
    if text.startswith("location"):
        return f"server {{\nlisten 127.0.0.1:{port};\n{text}}}"
    return text.replace("127.0.0.1:80", f"127.0.0.1:{port}")


def program_of(name: str) -> str:
    """Return the path of a front's program; skip the test where it is not installed."""
    program = name.partition("-")[0]
    found = shutil.which(program, path=PATH)
    if not found:
        pytest.skip(f"{program} is not installed")
    return found


@contextlib.contextmanager
def in_front(name: str, folder: Path, proxy_port: int, *, more: str = "") -> Iterator[int]:
    """Run a server with that example in front of a proxy; its port is the value.

    ``more`` stands at the beginning of the server's block.
    """
    program, port = program_of(name), free_port()
    frame, arguments = {
        "nginx": (NGINX, ["-e", str(folder / "error.log"), "-c"]),
        "caddy": (CADDY, ["run", "--adapter", "caddyfile", "--config"]),
    }[name.partition("-")[0]]
    file, log = folder / "config", folder / "log"
    server_block = example(name, port, proxy_port).replace("{\n", "{\n" + more, 1)
    file.write_text(frame.format(folder=folder, server=server_block))
    with log.open("wb") as output:
        server = subprocess.Popen([program, *arguments, str(file)], stderr=output, stdout=output)

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/_qwenctl/healthz", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(answers, 20, f"{name}'s start")
        yield port
    finally:
        server.terminate()
        server.wait(timeout=20)
