"""What the node gets and what the client gets, byte by byte, through a real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from tests.integration.proxy.running import (
    KEY,
    PASSWORD,
    RawClient,
    RunningProxy,
    password_access,
    running,
)
from tests.support.waiting import until

MIB = 1 << 20


def echo(proxy: RunningProxy, head: bytes, body: bytes = b"") -> dict[str, Any]:
    """What the node saw of a request written as it stands."""
    with RawClient(proxy.port) as client:
        client.send(head.replace(b"\n", b"\r\n") + b"\r\n" + body)
        status, _, content = client.answer()
        assert status == 200, content
        return json.loads(content)  # type: ignore[no-any-return]


def seen(result: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in result["headers"] if key.lower() == name]


# Request line


@pytest.mark.parametrize(
    "method",
    ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "PURGE", "LINK"],
)
def test_every_method_passes(ready: RunningProxy, method: str) -> None:
    result = echo(ready, f"{method} /m HTTP/1.1\nHost: localhost\n".encode())
    assert result["method"] == method


def test_head_has_the_headers_of_get_and_no_body(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"HEAD /blob?size=100000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers = client.head()
        assert (status, dict(headers)["content-length"]) == (200, "100000")
        client.send(b"GET /after HTTP/1.1\r\nHost: localhost\r\n\r\n")  # no stray byte between
        status, _, body = client.answer()
        assert (status, json.loads(body)["target"]) == (200, "/after")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "//two//slashes//",
        "/a%2Fb%20c%25d",
        "/%e4%bd%a0%E5%A5%BD",
        "/semi;colon=1;x?a=1;b=2&c=%3B",
        "/file=/tmp/x%3Fy%23z",
        "/dots/../up/./here",
        "/q?next=http://example.org/?a=b&&=&x",
        "/q?a+b=%2B&empty=",
        "/'()*!$,:@~-_.",
        "/%7Etilde/[brackets]|pipe^",
        "/?" + "q" * 7000,
    ],
)
def test_target_passes_unchanged(ready: RunningProxy, target: str) -> None:
    assert echo(ready, f"GET {target} HTTP/1.1\nHost: localhost\n".encode())["target"] == target


def test_raw_utf8_in_the_target_gets_an_answer(ready: RunningProxy) -> None:
    """Not allowed by RFC 3986, and sent by some clients all the same."""
    with RawClient(ready.port) as client:
        client.send("GET /你好 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.answer()[0] in (200, 400)


def test_what_is_no_http_gets_400_and_harms_nobody(ready: RunningProxy) -> None:
    for rubbish in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with RawClient(ready.port) as client:
            client.send(rubbish + b"\r\n\r\n")
            assert client.head()[0] == 400
    assert requests.get(ready.url("/fine"), timeout=5).ok


# Headers


def test_duplicate_headers_and_host_are_kept(ready: RunningProxy) -> None:
    result = echo(
        ready,
        "GET / HTTP/1.1\nHost: localhost:99\nX-Twice: one\nX-Twice: two\nX-Text: 你好\n".encode(),
    )
    assert seen(result, "x-twice") == ["one", "two"]
    assert seen(result, "host") == ["localhost:99"]
    assert seen(result, "x-text") == ["你好".encode().decode("latin-1")]


def test_header_bytes_that_are_no_utf8_are_kept(ready: RunningProxy) -> None:
    for rest in (
        b"\r\n",
        b"Content-Length: 2\r\n\r\nhi",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        with RawClient(ready.port) as client:
            client.send(
                b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Text: caf\xe9 \xff\r\n"
                b"Cookie: a=\xe9; qwenctl_session=s\r\nX-Both: \xc3\xa9 \xe9\r\n" + rest
            )
            result = json.loads(client.answer()[2])
        assert seen(result, "x-text") == ["caf\xe9 \xff"]
        assert seen(result, "x-both") == ["\xc3\xa9 \xe9"]
        assert seen(result, "cookie") == ["a=\xe9"]


def test_an_answer_may_have_many_headers(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"GET /odd-head?lines=400 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers, body = client.answer()
    assert (status, body) == (200, b"ok")
    assert len([name for name in headers if name.startswith("x-")]) == 400


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("size=70000", "a header of the node's answer is larger than 64 KiB"),
        ("lines=600", "the node's answer has more than 512 headers"),
    ],
)
def test_an_answer_whose_head_is_too_large_is_named(
    ready: RunningProxy, query: str, why: str
) -> None:
    answer = requests.get(ready.url(f"/odd-head?{query}"), timeout=5)
    assert answer.status_code == 502
    assert (answer.json()["code"], answer.json()["detail"]) == ("bad_answer", why)
    page = requests.get(ready.url(f"/odd-head?{query}"), headers={"Accept": "text/html"}, timeout=5)
    assert (page.status_code, "text/html" in page.headers["content-type"]) == (502, True)
    assert ready.snapshot().phase.value == "ready"


def test_set_cookie_and_other_duplicates_come_back(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"GET /cookies HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, headers = client.head()
    assert [value for name, value in headers if name == "set-cookie"] == [
        "a=1; Path=/",
        "b=2; HttpOnly",
        "a=3; Path=/x",
    ]
    assert [value for name, value in headers if name == "x-twice"] == ["one", "two"]


def test_hop_by_hop_headers_do_not_reach_the_node(ready: RunningProxy) -> None:
    result = echo(
        ready,
        b"GET / HTTP/1.1\nHost: localhost\nConnection: keep-alive, X-Mine , x-Other\nX-Mine: 1\n"
        b"X-Other: 2\nKeep-Alive: timeout=9\nTE: trailers\nTrailer: X-T\nProxy-Connection: x\n"
        b"Proxy-Authorization: Basic x\nX-Stays: 3\n",
    )
    names = {name.lower() for name, _ in result["headers"]}
    gone = {"x-mine", "x-other", "keep-alive", "te", "trailer", "proxy-connection"}
    assert not names & (gone | {"proxy-authorization", "upgrade"})
    assert seen(result, "x-stays") == ["3"]


def test_connection_header_cannot_take_framing_away(ready: RunningProxy) -> None:
    """A client that calls Content-Length hop-by-hop must not smuggle its body as a request."""
    head = b"POST /framed HTTP/1.1\nHost: localhost\nConnection: content-length, host\nContent-Length: 40\n"
    body = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".ljust(40, b" ")
    result = echo(ready, head, body)
    assert result["size"] == 40
    assert not ready.journal_of("/smuggled")


def test_hop_by_hop_headers_do_not_reach_the_client(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"GET /hop-by-hop HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers, body = client.answer()
    assert (status, body, headers["x-public"]) == (200, b"ok", "seen")
    assert not {"x-private", "keep-alive", "proxy-authenticate", "connection"} & set(headers)


def test_nothing_is_added_that_the_client_did_not_send(ready: RunningProxy) -> None:
    result = echo(ready, b"GET / HTTP/1.1\nHost: localhost\n")
    names = {name.lower() for name, _ in result["headers"]}
    assert names == {"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}


def test_spoofed_forwarding_headers_are_replaced(ready: RunningProxy) -> None:
    result = echo(
        ready,
        b"GET / HTTP/1.1\nHost: localhost\nX-Forwarded-For: 6.6.6.6\nX-Forwarded-For: 7.7.7.7\n"
        b"X-Forwarded-Proto: https\nX-Forwarded-Host: evil.example\nForwarded: for=6.6.6.6\n",
    )
    assert seen(result, "x-forwarded-for") == ["127.0.0.1"]
    assert seen(result, "x-forwarded-proto") == ["http"]
    assert seen(result, "x-forwarded-host") == ["localhost"]
    assert seen(result, "forwarded") == []


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy with a password that trusts what runs on this machine."""
    settings: dict[str, Any] = {
        "access": password_access(),
        "proxy": {"trusted_proxies": ["127.0.0.0/8"]},
    }
    with running(tmp_path_factory.mktemp("behind"), **settings) as proxy:
        proxy.wake()
        yield proxy


def test_a_trusted_proxy_in_front_is_believed(behind: RunningProxy) -> None:
    result = echo(
        behind,
        f"GET / HTTP/1.1\nHost: inner\nX-API-Key: {KEY}\nX-Forwarded-For: 203.0.113.5\n"
        "X-Forwarded-Proto: https\nX-Forwarded-Host: ai.example.org\n".encode(),
    )
    assert seen(result, "x-forwarded-for") == ["203.0.113.5, 127.0.0.1"]
    assert seen(result, "x-forwarded-proto") == ["https"]
    assert seen(result, "x-forwarded-host") == ["ai.example.org"]
    assert seen(result, "host") == ["inner"]


def test_our_credentials_stay_here_and_others_pass(behind: RunningProxy) -> None:
    answer = requests.post(
        behind.url("/_qwenctl/login"),
        data={"password": PASSWORD},
        allow_redirects=False,
        timeout=10,
    )
    cookie = answer.cookies["qwenctl_session"]
    for header in (
        f"theirs=1; qwenctl_session={cookie}; other=2",
        f"theirs=1;qwenctl_session={cookie};other=2",
        f"qwenctl_session={cookie}; theirs=1;other=2",
        f"theirs=1; other=2; qwenctl_session={cookie}",
    ):
        result = echo(
            behind,
            f"GET / HTTP/1.1\nHost: h\nCookie: {header}\nAuthorization: Bearer sk-theirs\n".encode(),
        )
        assert cookie not in json.dumps(result)
        assert "theirs=1" in seen(result, "cookie")[0]
        assert "other=2" in seen(result, "cookie")[0]
        assert seen(result, "authorization") == ["Bearer sk-theirs"]
    result = echo(behind, f"GET / HTTP/1.1\nHost: h\nCookie: qwenctl_session={cookie}\n".encode())
    assert seen(result, "cookie") == []
    for header in (f"Authorization: Bearer {KEY}", f"authorization: bearer {KEY}"):
        result = echo(behind, f"GET / HTTP/1.1\nHost: h\n{header}\n".encode())
        assert KEY not in json.dumps(result)
    both = f"GET / HTTP/1.1\nHost: h\nX-API-Key: {KEY}\nAuthorization: Basic dTpw\n"
    result = echo(behind, both.encode())
    assert KEY not in json.dumps(result)
    assert seen(result, "authorization") == ["Basic dTpw"]


# Bodies


def test_bodies_pass_with_length_and_chunked(ready: RunningProxy) -> None:
    body = bytes(range(256)) * 1000
    for data in (body, iter([body[:70000], body[70000:70001], body[70001:]])):
        result = requests.post(ready.url("/b"), data=data, timeout=10).json()
        assert (result["size"], result["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_content_length_is_passed_on(ready: RunningProxy) -> None:
    result = echo(ready, b"POST / HTTP/1.1\nHost: localhost\nContent-Length: 3\n", b"abc")
    assert seen(result, "content-length") == ["3"]
    assert seen(result, "transfer-encoding") == []
    chunked = b"POST / HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n"
    result = echo(ready, chunked, b"3;ext=1\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert result["size"] == 3
    assert seen(result, "transfer-encoding") == ["chunked"]
    empty = echo(ready, b"POST / HTTP/1.1\nHost: localhost\nContent-Length: 0\n")
    assert empty["size"] == 0
    assert seen(empty, "transfer-encoding") == []


def test_expect_100_continue(ready: RunningProxy) -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    with RawClient(ready.port) as client:
        client.send(head)
        assert client.head()[0] == 100
        client.send(b"hello")
        status, _, body = client.answer()
    assert (status, json.loads(body)["size"]) == (200, 5)


def test_expect_100_continue_refused_by_the_node(ready: RunningProxy) -> None:
    """The client never has to send what the node does not want."""
    head = b"POST /too-large HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000000\r\n"
    with RawClient(ready.port) as client:
        client.send(head + b"Expect: 100-continue\r\n\r\n")
        status, _ = client.head()
        while status == 100:
            status, _ = client.head()
        assert status == 413


def test_the_node_hears_of_a_request_before_its_body_comes(ready: RunningProxy) -> None:
    """Some clients want to see the answer begin before they send the first byte."""
    with RawClient(ready.port) as client:
        client.send(b"POST /slow-body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        until(lambda: ready.journal_of("/slow-body"), 2.0, "the node's notice")
        client.send(b"hi")
        assert json.loads(client.answer()[2])["size"] == 2


def test_an_early_answer_reaches_a_client_that_still_sends(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(
            b"POST /too-large HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000000\r\n\r\n"
        )

        def send() -> None:
            try:
                for _ in range(8000):
                    client.send(b"x" * 65536)
            except OSError:
                pass  # the answer may come with a close

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        began = time.monotonic()
        status, _, body = client.answer()
        assert (status, body) == (413, b"too large")
        assert time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_200_mb_pass_both_ways_in_flat_memory(ready: RunningProxy, chunked: bool) -> None:
    size = 200 * MIB
    piece = bytes(256 * 1024)

    async def pieces() -> Any:
        for _ in range(size // len(piece)):
            yield piece

    async def go() -> None:
        await asyncio.sleep(0)
        before = ready.memory
        peak = before

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, ready.memory)
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        async with aiohttp.ClientSession() as session:
            headers = {} if chunked else {"Content-Length": str(size)}
            async with session.post(ready.url("/up"), data=pieces(), headers=headers) as answer:
                assert (await answer.json())["size"] == size
            got = 0
            way = "&chunked" if chunked else ""
            async with session.get(ready.url(f"/blob?size={size}{way}")) as answer:
                async for part in answer.content.iter_any():
                    got += len(part)
            assert got == size
        watcher.cancel()
        assert peak - before < 25 * MIB

    asyncio.run(go())


@pytest.mark.slow
def test_a_slow_reader_slows_the_node_and_costs_no_memory(ready: RunningProxy) -> None:
    target = f"/blob?size={300 * MIB}&slow"
    before = ready.memory
    with RawClient(ready.port) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.head()[0] == 200

        def left() -> int:
            return int(ready.journal_of(target)[-1].get("left", 0))

        amounts = [left()]
        for _ in range(20):
            threading.Event().wait(0.1)
            amounts.append(left())
        assert amounts[-1] == amounts[-5], "the node goes on writing although nobody reads"
        assert amounts[-1] > 250 * MIB
        assert ready.memory - before < 25 * MIB


@pytest.mark.slow
def test_a_slow_node_slows_the_sender_and_costs_no_memory(ready: RunningProxy) -> None:
    """Nobody takes the body: what has been sent must lie in a few buffers, not in our memory."""
    before = ready.memory
    with RawClient(ready.port, timeout=1.0) as client:
        client.send(
            b"POST /long-poll?seconds=4 HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 500000000\r\n\r\n"
        )
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100 * MIB:
                sent += client.socket.send(b"x" * 65536)
        assert sent < 50 * MIB
        assert ready.memory - before < 25 * MIB


# Answers


def test_events_arrive_one_by_one(ready: RunningProxy) -> None:
    """The node writes the next event only after the client has read the last one."""
    with requests.get(ready.url("/events?count=5"), stream=True, timeout=10) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines(chunk_size=1)
        for number in range(5):
            assert next(lines) == f"data: {number}".encode()
            assert next(lines) == b""
            requests.get(f"http://127.0.0.1:{ready.node_port()}/next", timeout=5)
        assert list(lines) == []


@pytest.mark.parametrize("code", [200, 201, 204, 206, 304, 400, 404, 418, 429, 451, 500, 503])
def test_status_passes(ready: RunningProxy, code: int) -> None:
    with RawClient(ready.port) as client:
        client.send(f"GET /status?code={code} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, headers, body = client.answer()
        assert (status, headers["x-kept"], headers["etag"], body) == (code, "yes", '"7"', b"")
        client.send(b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.head()[0] == 204  # the connection is in step


def test_304_with_the_length_of_what_it_spares(ready: RunningProxy) -> None:
    """RFC 9110 §8.6 allows a Content-Length there; the connection must stay usable."""
    with RawClient(ready.port) as client:
        client.send(b"GET /status?code=304&length HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers = client.head()
        assert (status, dict(headers)["etag"]) == (304, '"7"')
        client.send(b"GET /after HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.answer()[0] == 200
    assert "Traceback" not in ready.log


def test_informational_answers_do_not_confuse(ready: RunningProxy) -> None:
    answer = requests.get(ready.url("/hints"), timeout=5)
    assert (answer.status_code, answer.text) == (200, "done")


def test_compressed_answers_pass_untouched(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(b"GET /gzip HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        _, headers, body = client.answer()
    assert headers["content-encoding"] == "gzip"
    assert body == gzip.compress(b"packed " * 1000, mtime=0)


def test_redirects_are_the_clients_business(ready: RunningProxy) -> None:
    answer = requests.get(ready.url("/redirect"), allow_redirects=False, timeout=5)
    assert (answer.status_code, answer.headers["location"]) == (
        302,
        "https://example.org/else?x=%20",
    )


def test_an_answer_that_ends_with_its_connection(ready: RunningProxy) -> None:
    assert len(requests.get(ready.url("/close-delimited"), timeout=5).content) == 100_000


def test_the_connection_to_the_node_is_used_again(ready: RunningProxy) -> None:
    with requests.Session() as session:
        used = {session.get(ready.url("/k"), timeout=5).json()["connection"] for _ in range(10)}
    assert len(used) == 1


# Ends


def test_a_client_that_hangs_up_ends_the_nodes_work_before_an_answer(ready: RunningProxy) -> None:
    for number, head in enumerate((b"GET", b"POST")):
        target = f"/long-poll?hang-up={number}"
        with RawClient(ready.port) as client:
            body = b"Content-Length: 2\r\n\r\nhi" if head == b"POST" else b"\r\n"
            client.send(head + f" {target} HTTP/1.1\r\nHost: localhost\r\n".encode() + body)
            until(lambda t=target: ready.journal_of(t))  # type: ignore[misc]
        entry = lambda t=target: ready.journal_of(t)[-1]["end"]  # noqa: E731
        assert until(entry, 1.0, "the node's notice") == "cancelled"


def test_a_client_that_hangs_up_ends_the_nodes_work_in_the_middle(ready: RunningProxy) -> None:
    target = "/events?hang-up"
    with RawClient(ready.port) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.head()[0] == 200
        assert client.file.readline()
    assert until(lambda: ready.journal_of(target)[-1]["end"], 5.0) == "cancelled"


def test_a_client_that_hangs_up_in_its_upload(ready: RunningProxy) -> None:
    target = "/up?hang-up"
    with RawClient(ready.port) as client:
        client.send(
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf".encode()
        )
        until(lambda: ready.journal_of(target))
    assert until(lambda: ready.journal_of(target)[-1]["end"], 5.0) != "done"


def test_a_node_that_dies_before_the_answer_gives_502(ready: RunningProxy) -> None:
    for method in ("GET", "POST"):
        answer = requests.request(method, ready.url("/die?when=before"), timeout=10)
        assert answer.status_code == 502
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.json()["code"] == "upstream_died"


@pytest.mark.parametrize("when", ["middle", "middle-length", "short"])
def test_a_node_that_dies_in_its_answer_breaks_the_clients_connection(
    ready: RunningProxy, when: str
) -> None:
    with RawClient(ready.port) as client:
        client.send(f"GET /die?when={when} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, _ = client.head()
        assert status == 200
        rest = client.file.read()
        assert b"hello" in rest
        assert not rest.endswith(b"0\r\n\r\n"), "looks like a clean end"
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        requests.get(ready.url(f"/die?when={when}"), timeout=5)


def test_no_traceback_of_all_that(ready: RunningProxy) -> None:
    assert "Traceback" not in ready.log


@pytest.mark.slow
def test_a_node_that_does_not_listen_gives_502_after_the_recheck(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        proxy.wake()
        assert requests.get(proxy.url("/stop-listening"), timeout=5).status_code == 204
        began = time.monotonic()
        answer = requests.get(proxy.url("/x"), timeout=10)
        assert answer.status_code in (502, 503)  # 503: the state turned out to be another one
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.headers["retry-after"]
        assert time.monotonic() - began < 6
        assert "no connection to the node" in proxy.log


@pytest.mark.slow
def test_a_shutdown_with_a_stream_of_the_node_is_quiet(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        proxy.wake()
        with RawClient(proxy.port, timeout=20) as client:
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.head()[0] == 200
            proxy.stop()
            assert not client.file.read().endswith(b"0\r\n\r\n")
        assert "Traceback" not in proxy.log


def test_an_answer_that_breaks_off_before_it_is_passed_on_is_the_nodes_fault(
    ready: RunningProxy,
) -> None:
    answer = requests.get(ready.url("/v1/models?half"), timeout=10)  # a list is kept back
    assert answer.status_code == 502
    assert answer.json()["code"] == "upstream_died"
