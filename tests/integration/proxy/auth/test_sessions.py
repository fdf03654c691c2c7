"""Sessions of browsers: cookies, records, and their end on every replica."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from proxy.auth import sessions as module
from proxy.auth.sessions import Sessions
from proxy.http.cookies import SESSION_COOKIE
from proxy.http.request import Request
from qwenctl.config.deployment import AccessConfig
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store
from tests.integration.proxy.parts import FaultyStore
from tests.integration.proxy.running import PASSWORD, RunningProxy, password_access, running
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock
from tests.support.waiting import until
from tests.unit.proxy.auth.test_authenticator import asked, chain, installed
from tests.unit.proxy.auth.test_password import CONFIG, KEY, access
from tests.unit.proxy.made import request

__all__ = ["installed"]  # a fixture

SAME = {"Sec-Fetch-Site": "same-origin"}


def carrying(cookie: str) -> Request:
    return request("GET", "/", {"Cookie": f"a=1; {SESSION_COOKIE}={cookie}; b=2"})


@pytest.fixture
def replica(store: Store, clock: VirtualClock) -> Callable[..., Sessions]:
    """Make a replica that has read the store, a moment after all that was before."""

    def make(config: AccessConfig = CONFIG, secret: str = "s") -> Sessions:
        clock.advance(1.0)
        made = Sessions(store, config, secret)
        made.refresh()
        return made

    return make


Make = Callable[..., Sessions]


def knows(sessions: Sessions, cookie: str) -> bool:
    return sessions.identify(carrying(cookie)) is not None


def test_every_replica_knows_a_session_by_a_name_that_says_nothing_of_its_cookie(
    replica: Make, client: redis.Redis, deployment: str
) -> None:
    first, second = replica(), replica()
    cookie, other = first.begin(), first.begin()
    identity = second.identify(carrying(cookie))
    assert identity
    assert identity == first.identify(carrying(cookie)) == replica().identify(carrying(cookie))
    assert identity != first.identify(carrying(other))
    assert identity.lease == f"request:browser:{identity.name}"
    assert len(identity.name) == 8
    stored = str([client.zrange(key, 0, -1) for key in client.keys(f"*{deployment}/*:sessions")])
    assert identity.name in stored
    token = first._serializer.loads(cookie)[0]
    assert token not in stored


def test_a_cookie_that_was_tampered_with(replica: Make) -> None:
    sessions = replica()
    cookie = sessions.begin()
    for at in range(0, len(cookie), 3):
        changed = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
        # The last character of base64 may carry unused bits; every other change must count.
        if at < len(cookie) - 1:
            assert not knows(sessions, changed), at
    for rubbish in ("", ".", "..", "a.b.c", cookie + "x", cookie[:-5], "é" * 50, "0" * 5000):
        assert not knows(sessions, rubbish)


def test_a_cookie_of_another_secret_or_password(replica: Make) -> None:
    cookie = replica().begin()
    assert knows(replica(), cookie)
    assert not knows(replica(secret="other"), cookie)
    assert not knows(replica(access("changed")), cookie)


def test_a_cookie_of_the_time_before_records_asks_to_sign_in_again(replica: Make) -> None:
    """It named its session only, signed for another purpose (salt)."""
    sessions = replica()
    key = sessions._serializer.secret_keys[-1]
    earlier = module.URLSafeTimedSerializer(key, salt="qwenctl-session").dumps("0a1b2c3d")
    assert not knows(sessions, earlier)


def test_a_cookie_expires(replica: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = replica()
    cookie, now = sessions.begin(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3590)
    assert knows(sessions, cookie)
    monkeypatch.setattr(time, "time", lambda: now + 3602)
    assert not knows(sessions, cookie)


def test_a_session_that_was_ended_is_unknown_here_at_once_and_elsewhere_at_the_next_look(
    replica: Make, clock: VirtualClock
) -> None:
    here = replica()
    cookie, other = here.begin(), here.begin()
    there, restarted = replica(), replica()
    assert knows(there, cookie)
    here.end(carrying(cookie))
    here.end(carrying(cookie))
    here.end(carrying("rubbish"))
    assert not knows(here, cookie)
    there.refresh()
    assert not knows(there, cookie)
    assert not knows(replica(), cookie)
    assert all(knows(one, other) for one in (here, there, restarted, replica()))


def test_a_session_can_be_ended_although_the_stores_clock_was_set_back(
    replica: Make, clock: VirtualClock
) -> None:
    here, there = replica(), replica()
    cookie = here.begin()
    assert knows(here, cookie)
    clock.now -= 3600.0
    there.refresh()
    assert knows(there, cookie), "it goes on"
    here.end(carrying(cookie))
    there.refresh()
    assert not knows(here, cookie)
    assert not knows(there, cookie)


def test_before_the_first_look_nobody_is_known(store: Store, replica: Make) -> None:
    cookie = replica().begin()
    assert not knows(Sessions(store, CONFIG, "s"), cookie)


def test_those_that_expire_first_end_beyond_the_limit(
    replica: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    sessions, cookies = replica(), []
    for _ in range(5):
        cookies.append(sessions.begin())
        clock.advance(1.0)
    assert [knows(replica(), cookie) for cookie in cookies] == [False, False, True, True, True]


def test_a_record_goes_when_its_session_has_expired(
    replica: Make, store: Store, clock: VirtualClock, client: redis.Redis
) -> None:
    sessions = replica()
    sessions.begin()
    clock.advance(CONFIG.session)
    assert store.sessions("other")[2] == frozenset()
    sessions.begin()
    zset, info = store.keys("")[:2]
    assert (client.zcard(zset), client.hlen(info)) == (1, 2)  # with the version


def test_when_it_was_last_seen_is_written_once_a_minute(
    replica: Make, store: Store, clock: VirtualClock, client: redis.Redis
) -> None:
    sessions = replica()
    cookie, unused = sessions.begin(), sessions.begin()
    began = round(clock.now * 1000)
    clock.advance(5.0)

    def seen() -> set[tuple[int, int]]:
        import json

        stored = client.hgetall(store.keys("")[1])
        records = [json.loads(text) for name, text in stored.items() if name != "version"]
        return {(record["created"], record["seen"]) for record in records}

    assert knows(sessions, cookie)
    sessions.refresh()
    assert seen() == {(began, began)}
    sessions._noted_at -= module.SEEN
    sessions.refresh()
    assert seen() == {(began, began), (began, began + 5000)}
    sessions.end(carrying(cookie))
    sessions._noted_at -= module.SEEN
    sessions._seen.add(module._name(sessions._serializer.loads(cookie)[0]))
    sessions.refresh()  # an ended session does not come back
    assert seen() == {(began, began)}
    assert not knows(sessions, cookie)
    assert knows(sessions, unused)


def test_known_sessions_go_on_without_the_store(faulty: FaultyStore, clock: VirtualClock) -> None:
    sessions = Sessions(faulty, CONFIG, "s")
    sessions.refresh()
    cookie = sessions.begin()
    clock.advance(1.0)
    sessions.refresh()
    stop = threading.Event()
    reader = threading.Thread(target=sessions.run, args=(stop,))
    reader.start()
    try:
        for fault in (StoreUnavailable("away"), RuntimeError("a mistake")):
            faulty.faults["sessions"] = fault
            until(lambda: "sessions" not in faulty.faults, 5, "a look that fails")
            assert knows(sessions, cookie)
        faulty.faults["end_session"] = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            sessions.end(carrying(cookie))
        assert knows(sessions, cookie)
        faulty.end_session(module._name(sessions._serializer.loads(cookie)[0]))
        until(lambda: not knows(sessions, cookie), 5, "the next look")
    finally:
        stop.set()
        reader.join()


def test_a_store_that_lost_its_data_ends_all(replica: Make, store: Store, client: Any) -> None:
    sessions = replica()
    cookie = sessions.begin()
    assert knows(replica(), cookie)
    client.delete(*store.keys(""))
    assert not knows(replica(), cookie)
    sessions.refresh()
    assert not knows(sessions, cookie)


def test_the_first_authenticator_that_knows_the_visitor_counts(store: Store) -> None:
    both = chain(store, **{"trusted-header": {"header": "X-User"}})
    assert both.sessions
    both.sessions.refresh()
    assert both.sign_in("wrong", "client") == ""
    cookie = both.sign_in("secret", "client")
    assert cookie
    known = {"x_user": "anna", "x_api_key": KEY, "cookie": f"{SESSION_COOKIE}={cookie}"}
    kinds = []
    while known:
        identity = both.identify(asked(**known))
        assert identity
        kinds.append(identity.lease.split(":")[1])
        known.pop({"key": "x_api_key", "member": "x_user", "browser": "cookie"}[kinds[-1]])
    assert kinds == ["key", "member", "browser"]
    assert both.identify(asked()) is None


# Two proxies


def status(proxy: RunningProxy, cookie: str) -> int:
    return requests.get(
        proxy.url("/_qwenctl/api/status"), cookies={SESSION_COOKIE: cookie}, timeout=10
    ).status_code


def sign_in(proxy: RunningProxy) -> str:
    answer = requests.post(
        proxy.url("/_qwenctl/login"),
        data={"password": PASSWORD},
        headers=SAME,
        allow_redirects=False,
        timeout=20,
    )
    return answer.cookies[SESSION_COOKIE]


def sign_out(proxy: RunningProxy, cookie: str) -> requests.Response:
    return requests.post(
        proxy.url("/_qwenctl/logout"),
        headers=SAME,
        cookies={SESSION_COOKIE: cookie},
        allow_redirects=False,
        timeout=20,
    )


def test_signed_out_on_one_refused_on_the_other(tmp_path: Path) -> None:
    settings = {"access": password_access(), "node_secret": "the same on both proxies"}
    with (
        ValkeyServer(port=free_port(), appendonly="yes") as server,
        running(tmp_path / "a", redis_url=server.url, **settings) as first,
        running(tmp_path / "b", redis_url=server.url, **settings) as second,
    ):
        cookie, other = sign_in(first), sign_in(second)
        for one in (cookie, other):
            assert (status(first, one), status(second, one)) == (200, 200)
        stream = requests.get(
            second.url("/_qwenctl/api/events"),
            cookies={SESSION_COOKIE: cookie},
            stream=True,
            timeout=20,
        )
        assert stream.status_code == 200
        answer = sign_out(first, cookie)
        ended = time.monotonic()
        assert answer.status_code == 303
        assert f"{SESSION_COOKIE}=;" in answer.headers["set-cookie"]
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert status(first, cookie) == 401
        until(lambda: status(second, cookie) == 401, 5, "the end on the other proxy")
        assert time.monotonic() - ended < 1.0
        assert (
            requests.post(
                second.url("/x"), json={}, cookies={SESSION_COOKIE: cookie}, timeout=10
            ).status_code
            == 401
        )
        assert b"event: status" in stream.raw.read(100_000)  # it ends
        assert (status(first, other), status(second, other)) == (200, 200)
        server.kill()
        assert sign_out(first, other).status_code == 503
        assert second_knows(second, other)
        server.start()
        until(lambda: sign_out(first, other).status_code == 303, 20, "signing out")
        until(lambda: not second_knows(second, other), 20, "the end on the other proxy")
        assert not second_knows(second, cookie)
        assert "Traceback" not in first.log + second.log


def second_knows(proxy: RunningProxy, cookie: str) -> bool:
    """Whether the cookie is taken, however the store is: nothing but the sign-in is asked for."""
    answer = requests.get(proxy.url("/_qwenctl/gate"), cookies={SESSION_COOKIE: cookie}, timeout=20)
    return answer.status_code != 401
