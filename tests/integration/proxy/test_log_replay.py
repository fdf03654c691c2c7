"""A real web server's log, and what scanners send, against GPUs that sleep: nothing may start.

The log is public and lies beside the repository (``$QWENCTL_SHARED`` or ``../shared``).
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from yarl import URL

from tests.integration.proxy.running import (
    RawClient,
    RunningProxy,
    gpu,
    password_access,
    running,
)
from tests.support.paths import ROOT

PRESETS = ("generic", "gradio", "open-webui", "openai")
LINE = re.compile(r'^\S+ \S+ \S+ \[[^]]*\] "(\S+) (.*?)(?: HTTP/[\d.]+)?" \d+ \S+ "[^"]*" "(.*)"$')

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/131.0.0.0 Safari/537.36"
)
FORM = "application/x-www-form-urlencoded"


class Row(NamedTuple):
    method: str
    path: str
    agent: str
    headers: dict[str, str] = {}  # noqa: RUF012
    body: bytes = b""


SCANS = tuple(
    Row(method, path, agent, {"Content-Type": kind} if kind else {}, body)
    for agent in ("Mozilla/5.0 zgrab/0.x", CHROME, "")
    for method, path, kind, body in (
        ("POST", "/xmlrpc.php", "text/xml", b"<methodCall/>"),
        ("POST", "/wp-login.php", FORM, b"log=admin&pwd=admin"),
        ("POST", "/administrator/index.php", FORM, b"username=a"),
        ("POST", "/", FORM, b"0x[]=androxgh0st"),
        ("POST", "/", "", b""),
        ("POST", "/cgi-bin/.%2e/.%2e/.%2e/bin/sh", "text/plain", b"id"),
        ("POST", "/GponForm/diag_Form?images/", FORM, b"XWebPageName=diag"),
        ("POST", "/HNAP1/", "text/xml", b"<x/>"),
        ("POST", "/boaform/admin/formLogin", FORM, b"username=admin"),
        ("POST", "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php", "", b"<?php ?>"),
        ("POST", "/uploads/shell.php", "multipart/form-data; boundary=x", b"--x--\r\n"),
        ("POST", "/api/v1/pods", FORM, b"x"),
        ("POST", "/sdk", "text/xml", b"<x/>"),
        ("PUT", "/shell.jsp", "", b"x"),
        ("DELETE", "/index.html", "", b""),
        ("PATCH", "/a", "", b""),
        ("PROPFIND", "/", "text/xml", b"<propfind/>"),
        ("OPTIONS", "/", "", b""),
        ("TRACE", "/", "", b""),
    )
)

VISITORS = tuple(
    Row("GET", path, agent, {"Accept": accept})
    for path in ("/", "/favicon.ico", "/robots.txt", "/health", "/?q=1", "/gradio_api/heartbeat/x")
    for agent, accept in (
        ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "*/*"),
        ("Twitterbot/1.0", "text/html"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1)", "text/html,application/xhtml+xml,*/*;q=0.8"),
        ("facebookexternalhit/1.1", "*/*"),
        ("kube-probe/1.30", "*/*"),
        ("curl/8.5.0", "*/*"),
        ("UptimeRobot/2.0", "text/html"),
        (CHROME, "text/html,application/xhtml+xml"),
    )
)


def log_rows() -> list[Row]:
    """Method, path and User-Agent of each line."""
    shared = Path(os.environ.get("QWENCTL_SHARED") or ROOT.parent / "shared")
    file = shared / "logs" / "web-2015.log.gz"
    if not file.exists() and not os.environ.get("CI"):
        pytest.skip(f"no log at {file}; set QWENCTL_SHARED to the folder that has logs/")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8", "replace").splitlines()
    found = [LINE.match(line) for line in lines]
    rows = [Row(match[1], match[2], match[3]) for match in found if match]
    assert len(rows) > 0.999 * len(lines), "the log has another format"
    return rows


@pytest.fixture(scope="module", params=["none", "password"])
def asleep(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningProxy]:
    """A proxy with one sleeping GPU for each preset."""
    settings: dict[str, Any] = {"access": password_access()} if request.param == "password" else {}
    gpus = {name: gpu(preset=name, hosts=[f"{name}.localhost"]) for name in PRESETS}
    with running(tmp_path_factory.mktemp("asleep"), gpu=gpus, **settings) as proxy:
        yield proxy


def replay(proxy: RunningProxy, rows: Sequence[Row]) -> dict[int, int]:
    """Send each row to each GPU; how often each status came."""
    counts: dict[int, int] = {}

    async def send(http: aiohttp.ClientSession, todo: Iterator[tuple[str, Row]]) -> None:
        for name, row in todo:
            url = URL(f"http://127.0.0.1:{proxy.port}{row.path}", encoded=True)
            headers = {"Host": f"{name}.localhost", "User-Agent": row.agent, **row.headers}
            async with http.request(
                row.method, url, headers=headers, data=row.body or None, allow_redirects=False
            ) as answer:
                await answer.read()
                counts[answer.status] = counts.get(answer.status, 0) + 1

    async def go() -> None:
        todo = iter([(name, row) for row in rows for name in PRESETS])
        skip = ("Accept", "Content-Type", "Accept-Encoding")
        timeout = aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(skip_auto_headers=skip, timeout=timeout) as http:
            await asyncio.gather(*(send(http, todo) for _ in range(24)))

    asyncio.run(go())
    return counts


def nothing_started(proxy: RunningProxy) -> bool:
    return all(proxy.untouched(name) for name in PRESETS)


def test_scanners_start_nothing(asleep: RunningProxy) -> None:
    counts = replay(asleep, SCANS)
    assert sum(counts.values()) == len(SCANS) * len(PRESETS)
    assert set(counts) <= {401, 403, 503}, counts
    assert nothing_started(asleep)


def test_visitors_that_are_no_people_start_nothing(asleep: RunningProxy) -> None:
    counts = replay(asleep, VISITORS)
    assert set(counts) <= {303, 401, 503}, counts
    assert nothing_started(asleep)


@pytest.mark.parametrize(
    "content",
    [
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"POST http://example.org/x HTTP/1.1\r\nHost: example.org\r\nContent-Length: 1\r\n\r\nx",
        b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00",
        b"*1\r\n$4\r\nINFO\r\n",
    ],
)
def test_an_open_proxy_is_not_what_they_find(asleep: RunningProxy, content: bytes) -> None:
    with RawClient(asleep.port) as client:
        client.send(content + b"\r\n\r\n")
        status, _ = client.head()
    assert status in (400, 401, 404, 421, 503)
    assert nothing_started(asleep)


def test_a_public_log_starts_nothing(asleep: RunningProxy) -> None:
    rows = log_rows()
    counts = replay(asleep, rows)
    assert sum(counts.values()) == len(rows) * len(PRESETS)
    # A few requests of the log are malformed; all others are told to wait or to sign in.
    assert counts.get(503, 0) + counts.get(401, 0) > 0.99 * sum(counts.values()), counts
    assert nothing_started(asleep)


def test_a_person_does_start_it(asleep: RunningProxy) -> None:
    """The checks above can fail: what wakes is seen by them."""
    for name in PRESETS:
        asleep.store.demand(name, "request:x", 1.0, reason="test", actor="test")
        assert not asleep.untouched(name)
