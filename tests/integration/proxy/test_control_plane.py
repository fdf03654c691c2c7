"""Signing in, health, metrics, the node's messages, and what happens when somebody misbehaves."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from qwenctl.protocol import signing
from qwenctl.protocol.messages import HELLO_PATH, REPORT_PATH
from qwenctl.protocol.signing import sign_message
from tests.integration.proxy.running import (
    KEY,
    PASSWORD,
    RawClient,
    RunningProxy,
    gpu,
    password_access,
    running,
)

BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}
SAME = {"Sec-Fetch-Site": "same-origin"}
SECRET = "the node secret of this test"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A sleeping GPU behind a password, and a trusted proxy on this machine in front."""
    settings: dict[str, Any] = {
        "gpu": {"main": gpu(), "spare": gpu(hosts=["spare.localhost"])},
        "access": password_access(),
        "proxy": {"trusted_proxies": ["127.0.0.1"]},
        "node_secret": SECRET,
    }
    with running(tmp_path_factory.mktemp("locked"), **settings) as proxy:
        yield proxy


def login(
    proxy: RunningProxy, password: str = PASSWORD, *, client: str = "", **options: Any
) -> requests.Response:
    headers = {**SAME, **({"X-Forwarded-For": client} if client else {})}
    headers |= options.pop("headers", {})
    data = {"password": password, "next": options.pop("then", "/")}
    return requests.post(
        proxy.url("/_qwenctl/login"), data=data, headers=headers, allow_redirects=False, timeout=20
    )


# Signing in


def test_cookie_flags(locked: RunningProxy) -> None:
    flags = login(locked).headers["set-cookie"]
    assert "HttpOnly" in flags
    assert "SameSite=Lax" in flags
    assert "Path=/" in flags
    assert "Secure" not in flags
    assert "Max-Age=1209600" in flags
    over_tls = login(locked, headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert "Secure" in over_tls


def test_a_wrong_password_is_refused_and_then_throttled(locked: RunningProxy) -> None:
    attempts = [login(locked, f"guess {n}", client="198.51.100.7") for n in range(8)]
    assert [a.status_code for a in attempts] == [403] * 5 + [429] * 3
    assert all("set-cookie" not in a.headers for a in attempts)
    assert 1 <= int(attempts[-1].headers["retry-after"]) <= 60
    # Not even the right one, from there; it still works from elsewhere.
    assert login(locked, client="198.51.100.7").status_code == 429
    assert login(locked, client="198.51.100.8").status_code == 303


def test_guesses_by_way_of_two_proxies_count_for_their_client(locked: RunningProxy) -> None:
    """Neither his ports nor the second proxy's address make him another client."""
    by = [f"9.9.9.{n}, 198.51.100.40:{1000 + n}, 127.0.0.1" for n in range(6)]
    attempts = [login(locked, f"guess {n}", client=hops) for n, hops in enumerate(by)]
    assert [a.status_code for a in attempts] == [403] * 5 + [429]
    assert login(locked, client="198.51.100.41, 127.0.0.1").status_code == 303


def test_a_visitor_behind_two_proxies(locked: RunningProxy) -> None:
    """TLS ends at the first, which is reached by HTTP/2: cookies come in several lines."""
    flags = login(locked, headers={"X-Forwarded-Proto": "https, http"}).headers["set-cookie"]
    assert "Secure" in flags
    session = flags.partition(";")[0]
    with RawClient(locked.port) as client:
        client.send(
            b"GET /_qwenctl/api/status HTTP/1.1\r\nHost: inner:8080\r\nCookie: theirs=1\r\n"
            b"Cookie: " + session.encode() + b"\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n"
            b"X-Forwarded-Host: evil.example, spare.localhost, inner:8080\r\n\r\n"
        )
        status, _, body = client.answer()
    assert (status, json.loads(body)["gpu"]) == (200, "spare")


def test_a_form_of_another_site_does_not_sign_in(locked: RunningProxy) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        answer = login(locked, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    evil = requests.post(
        locked.url("/_qwenctl/login"),
        data={"password": PASSWORD},
        headers={"Origin": "http://evil.example"},
        timeout=10,
    )
    assert evil.status_code == 403
    out = requests.post(
        locked.url("/_qwenctl/logout"), headers={"Origin": "http://evil.example"}, timeout=5
    )
    assert out.status_code == 403


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "http://evil.example",
        "https:evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        " //evil.example",
        "evil.example",
        "/%0d%0aSet-Cookie:%20x=1",
        "/\r\nSet-Cookie: x=1",
        "",
    ],
)
def test_signing_in_leads_to_this_site_only(locked: RunningProxy, target: str) -> None:
    answer = login(locked, then=target)
    assert answer.status_code == 303
    location = answer.headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    assert "evil.example" not in location
    assert "x=1" not in answer.headers["set-cookie"]


def test_the_cookie_opens_and_a_changed_one_does_not(locked: RunningProxy) -> None:
    cookie = login(locked).cookies["qwenctl_session"]
    url = locked.url("/_qwenctl/api/status")
    assert requests.get(url, cookies={"qwenctl_session": cookie}, timeout=5).status_code == 200
    for changed in (cookie[:-4] + "AAAA", cookie[1:], cookie.replace(".", ""), "x", ""):
        answer = requests.get(url, cookies={"qwenctl_session": changed}, timeout=5)
        assert answer.status_code == 401


def test_signing_out(locked: RunningProxy) -> None:
    with requests.Session() as browser:
        browser.post(locked.url("/_qwenctl/login"), data={"password": PASSWORD}, timeout=10)
        assert browser.cookies.get("qwenctl_session")
        browser.post(locked.url("/_qwenctl/logout"), headers=SAME, timeout=5)
        assert not browser.cookies.get("qwenctl_session")


def test_keys_and_what_is_told_to_whom(locked: RunningProxy) -> None:
    for path in ("/_qwenctl/api/status", "/_qwenctl/api/events?gpu=main", "/x"):
        answer = requests.get(locked.url(path), timeout=5)
        assert answer.status_code == 401
        assert answer.headers["content-type"].startswith("application/problem+json")
        page = requests.get(locked.url(path), headers=BROWSER, allow_redirects=False, timeout=5)
        assert page.status_code in (303, 401)
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
        status = requests.get(locked.url("/_qwenctl/api/status"), headers=headers, timeout=5)
        assert status.json()["phase"] == "off"
        assert status.json()["may_wake"] is True


def test_the_gpu_is_found_by_host_name(locked: RunningProxy) -> None:
    headers = {"X-API-Key": KEY, "Host": "spare.localhost"}
    answer = requests.get(locked.url("/_qwenctl/api/status"), headers=headers, timeout=5)
    assert answer.json()["gpu"] == "spare"


# Health and figures


def test_health(locked: RunningProxy) -> None:
    assert requests.get(locked.url("/_qwenctl/healthz"), timeout=5).json()["status"] == "ok"
    assert requests.get(locked.url("/_qwenctl/readyz"), timeout=5).json()["status"] == "ok"


def test_metrics_are_for_scrapers_here_and_holders_of_a_key(locked: RunningProxy) -> None:
    url = locked.url("/_qwenctl/metrics")
    here = requests.get(url, timeout=5)
    assert here.status_code == 200
    assert 'qwenctl_phase{gpu="main",phase="off"} 1.0' in here.text
    looks = 'qwenctl_cloud_call_seconds_count{action="describe",gpu="main",outcome="ok"}'
    assert looks in here.text  # the controllers tell the metrics
    through = {"X-Forwarded-For": "198.51.100.9"}
    assert requests.get(url, headers=through, timeout=5).status_code == 401
    assert requests.get(url, headers={**through, "X-API-Key": KEY}, timeout=5).status_code == 200


def test_unknown_paths_of_ours_never_reach_the_node(locked: RunningProxy) -> None:
    for path in (
        "/_qwenctl/nothing",
        "/_qwenctl/../_qwenctl/x",
        "/%5Fqwenctl/nothing",
        "/_qwenctl",
    ):
        with RawClient(locked.port) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\n\r\n".encode())
            assert client.answer()[0] in (200, 303, 308, 404)


def test_errors_are_html_for_people_and_json_for_programs(locked: RunningProxy) -> None:
    page = requests.get(locked.url("/_qwenctl/nothing"), headers=BROWSER, timeout=5)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    problem = requests.get(locked.url("/_qwenctl/nothing"), timeout=5)
    assert problem.headers["content-type"].startswith("application/problem+json")
    assert problem.json()["status"] == 404


# Slow and large


def test_a_large_body_is_refused(locked: RunningProxy) -> None:
    for path in ("/_qwenctl/login", HELLO_PATH, REPORT_PATH):
        with RawClient(locked.port) as client:
            client.send(
                f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n".encode()
                + b"x" * 300_000
            )
            assert client.answer()[0] == 413


def test_slow_senders_do_not_hold_up_the_others(locked: RunningProxy) -> None:
    """More of them than the control plane has threads, some in the headers, some in the body."""
    slow = [RawClient(locked.port) for _ in range(150)]
    try:
        for number, client in enumerate(slow):
            head = b"POST /_qwenctl/login HTTP/1.1\r\nHost: h\r\n"
            client.send(head + (b"Content-Length: 100\r\n\r\npass" if number % 2 else b"X-Slow: "))
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(
                    lambda _: requests.get(locked.url("/_qwenctl/readyz"), timeout=5), range(40)
                )
            )
        assert all(answer.ok for answer in answers)
        assert time.monotonic() - began < 3
    finally:
        for client in slow:
            client.socket.close()


@pytest.mark.slow
def test_a_body_that_does_not_arrive_is_given_up(locked: RunningProxy) -> None:
    with RawClient(locked.port, timeout=30) as client:
        client.send(b"POST /_qwenctl/login HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\npass")
        assert client.answer()[0] == 408


# The node's messages


def post(
    proxy: RunningProxy, path: str, body: bytes, headers: dict[str, str] | None = None
) -> requests.Response:
    return requests.post(proxy.url(path), data=body, headers=headers, timeout=10)


def signed(body: bytes, path: str = HELLO_PATH, *, skew: float = 0.0, key: str = SECRET) -> Any:
    return sign_message(key, "POST", path, body, now=time.time() + skew)


def hello(boot: str = "boot-000001", gpu_name: str = "main") -> bytes:
    return json.dumps({"gpu": gpu_name, "boot_id": boot}).encode()


def report(boot: str, seq: int, state: str = "ready") -> bytes:
    content = {"gpu": "main", "boot_id": boot, "start_seq": seq, "state": state}
    return json.dumps(content).encode()


def essence(proxy: RunningProxy) -> tuple[object, ...]:
    """What a message could change; a signed one at the wrong time has the cloud read again only, and
    is remembered as one of a boot that was there before the next start. Who was refused is noted for
    `qwenctl status`."""
    snapshot = proxy.snapshot()
    state = {key: value for key, value in snapshot.state.items() if key not in LOOKS}
    return (state, dict(snapshot.node), snapshot.leases, snapshot.blocks)


REFUSED = ("refused_code", "refused_peer", "refused_why", "refused_at")
LOOKS = ("observed_at", "look_at", "stranger", *REFUSED)


def test_messages_that_do_not_count(locked: RunningProxy) -> None:
    before = essence(locked)
    body = hello()
    good = signed(body)
    cases: list[tuple[str, bytes, dict[str, str], int]] = [
        (HELLO_PATH, body, {}, 401),
        (HELLO_PATH, body, signed(body, key="another"), 401),
        (HELLO_PATH, body + b" ", good, 401),
        (REPORT_PATH, body, good, 401),
        (HELLO_PATH, body, {**good, signing.NONCE_HEADER: secrets.token_hex(16)}, 401),
        (HELLO_PATH, body, {**good, signing.TIME_HEADER: f"{time.time() + 1:.3f}"}, 401),
        (HELLO_PATH, body, {**good, signing.SIGNATURE_HEADER: "v1="}, 401),
        (HELLO_PATH, body, {**good, signing.SIGNATURE_HEADER: "\xff"}, 401),
        (HELLO_PATH, body, signed(body, skew=-3600), 401),
        (HELLO_PATH, body, signed(body, skew=3600), 401),
        (HELLO_PATH, b"{", signed(b"{"), 400),
        (HELLO_PATH, b"", signed(b""), 400),
        (HELLO_PATH, b"[]", signed(b"[]"), 400),
        (HELLO_PATH, hello("short"), signed(hello("short")), 400),
        (HELLO_PATH, hello(gpu_name="other"), signed(hello(gpu_name="other")), 404),
        (HELLO_PATH, body, good, 409),  # signed right, but this GPU is off
        (HELLO_PATH, body, good, 409),  # and again
    ]
    for path, content, headers, status in cases:
        answer = post(locked, path, content, headers)
        assert answer.status_code == status, (path, content, headers, answer.text)
        assert answer.json()["refused"]
    assert essence(locked) == before
    assert locked.untouched()


def test_the_answer_is_signed(locked: RunningProxy) -> None:
    body = hello("boot-signed")
    headers = signed(body)
    answer = post(locked, HELLO_PATH, body, headers)
    nonce = headers[signing.NONCE_HEADER]
    signing.check_answer(SECRET, nonce, answer.status_code, answer.content, answer.headers)
    with pytest.raises(signing.BadSignature):
        signing.check_answer(SECRET, nonce, 200, answer.content, answer.headers)


@pytest.mark.slow
def test_a_boot_that_is_not_the_present_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("boots"), node_secret=SECRET) as proxy:
        proxy.wake()
        snapshot = proxy.snapshot()
        seq, boot = snapshot.start_seq, snapshot.node["boot_id"]
        for body in (report("boot-of-another", seq), report(boot, seq - 1), report(boot, seq + 1)):
            answer = post(proxy, REPORT_PATH, body, signed(body, REPORT_PATH))
            assert answer.status_code == 409
            assert answer.json()["hello_again"]
        failed = report("boot-of-another", seq, "failed")
        assert post(proxy, REPORT_PATH, failed, signed(failed, REPORT_PATH)).status_code == 409
        good = report(boot, seq)
        headers = signed(good, REPORT_PATH)
        assert post(proxy, REPORT_PATH, good, headers).status_code == 200
        replayed = post(proxy, REPORT_PATH, good, headers)
        assert (replayed.status_code, "before" in replayed.json()["refused"]) == (409, True)
        assert proxy.snapshot().phase.value == "ready"
        assert proxy.snapshot().start_seq == seq
        # A node that has lost its address book gets no other address in.
        assert proxy.snapshot().address == "127.0.0.1"


@pytest.mark.slow
def test_two_thousand_bad_messages(locked: RunningProxy) -> None:
    post(locked, HELLO_PATH, hello(), signed(hello(), key="warm up"))
    memory, log_size = locked.memory, len(locked.log)
    before = essence(locked)

    def flood(part: int) -> int:
        refused = 0
        with requests.Session() as session:
            for number in range(250):
                body = hello(f"boot-{part}-{number:06}")
                how = number % 5
                headers: dict[str, str] = [
                    {},
                    signed(body, key="wrong"),
                    signed(body, skew=-9999),
                    signed(b"x"),
                    signed(body),
                ][how]
                answer = session.post(
                    locked.url(HELLO_PATH), data=body, headers=headers, timeout=20
                )
                refused += answer.status_code in (400, 401, 409)
        return refused

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(flood, range(8))) == 2000
    assert essence(locked) == before
    assert locked.memory - memory < 20 << 20
    assert len(locked.log) - log_size < 5000, "the log is flooded"
    assert requests.get(locked.url("/_qwenctl/readyz"), timeout=5).ok


# Beginnings and ends


@pytest.mark.slow
def test_a_new_password_ends_the_old_sessions(tmp_path_factory: pytest.TempPathFactory) -> None:
    from argon2 import PasswordHasher

    with running(tmp_path_factory.mktemp("change"), access=password_access()) as proxy:
        cookies = {"qwenctl_session": login(proxy).cookies["qwenctl_session"]}
        status = proxy.url("/_qwenctl/api/status")
        proxy.stop()
        proxy.start()
        assert requests.get(status, cookies=cookies, timeout=5).status_code == 200
        proxy.stop()
        quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        proxy.settings["access"]["password_hash"] = quick.hash("another")
        proxy.write_config()
        proxy.start()
        assert requests.get(status, cookies=cookies, timeout=5).status_code == 401


def test_a_stop_with_open_streams_prints_no_traceback(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("stop")) as proxy:
        with requests.get(
            proxy.url("/_qwenctl/api/events?gpu=main"), stream=True, timeout=30
        ) as stream:
            next(stream.iter_lines(chunk_size=1))
            stopper = threading.Thread(target=proxy.stop)
            stopper.start()
            stopper.join(20)
        assert proxy.process.returncode in (0, -15)
        assert "Traceback" not in proxy.log
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", proxy.port))


def test_no_secret_in_the_log(locked: RunningProxy) -> None:
    for secret in (PASSWORD, KEY, SECRET):
        assert secret not in locked.log
    assert "Traceback" not in locked.log
