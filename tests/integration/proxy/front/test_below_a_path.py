"""A path of another site: a browser is told that it cannot work, and API clients go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.integration.proxy.fronts import in_front, program_of
from tests.integration.proxy.running import KEY, gpu, password_access, running

BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Accept-Language": "en"}

MOUNTS = {
    "nginx-tls": "location /gpu/ {{ proxy_pass http://127.0.0.1:{port}/; "
    "proxy_set_header Host $visited; proxy_set_header X-Forwarded-For $remote_addr; {told} }}\n",
    "caddy-tls": "handle_path /gpu/* {{\nreverse_proxy 127.0.0.1:{port} {{\n{told}\n}}\n}}\n",
}
TELLS = {
    "nginx-tls": "proxy_set_header X-Forwarded-Prefix /gpu;",
    "caddy-tls": "header_up X-Forwarded-Prefix /gpu",
}


@pytest.mark.parametrize("by", ["public_url", "header"])
@pytest.mark.parametrize("name", list(MOUNTS))
def test_a_browser_below_a_path_is_told_to_use_a_host_name(
    name: str, by: str, tmp_path: Path
) -> None:
    program_of(name)
    options: dict[str, object] = {"trusted_proxies": ["127.0.0.1"]}
    if by == "public_url":
        options["public_url"] = "https://lab.example/gpu"
    gpus = {"main": gpu(preset="generic")}
    with running(tmp_path / "proxy", proxy=options, gpu=gpus, access=password_access()) as proxy:
        told = TELLS[name] if by == "header" else ""
        mount = MOUNTS[name].format(port=proxy.port, told=told)
        with in_front(name, tmp_path, proxy.port, more=mount) as port:
            site, host = f"http://127.0.0.1:{port}", {"Host": "lab.example"}
            key = {**host, "X-API-Key": KEY}
            for headers in ({**host, **BROWSER}, {**key, **BROWSER}):  # sign-in, and waiting page
                page = requests.get(f"{site}/gpu/", headers=headers, timeout=30)
                assert page.status_code == 501
                assert "host name of their own" in page.text
            asked = requests.get(f"{site}/gpu/_qwenctl/api/status", headers=key, timeout=30)
            assert (asked.status_code, asked.json()["gpu"]) == (200, "main")
            asked = requests.get(f"{site}/gpu/v1/x", headers=key, timeout=30)
            assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
            other = {**BROWSER, "Host": "gpu.example"}
            if by == "public_url":  # by another name it is at home at /
                page = requests.get(f"{site}/", headers=other, allow_redirects=False, timeout=30)
                assert page.headers["Location"].startswith("/_qwenctl/login")


def test_a_visitor_cannot_say_so(tmp_path: Path) -> None:
    with running(tmp_path, access=password_access()) as proxy:
        headers = {**BROWSER, "X-Forwarded-Prefix": "/gpu"}
        page = requests.get(proxy.url("/"), headers=headers, allow_redirects=False, timeout=30)
        assert page.status_code == 303
