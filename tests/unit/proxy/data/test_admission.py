"""The decision for each request × visitor × phase × setting, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.data.admission import Action, decide, may_wake
from proxy.http.request import Request
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.rules import Activity
from qwenctl.core.snapshot import Lease
from tests.unit.proxy.made import (
    ANYBODY,
    BROWSER,
    KEY,
    NAVIGATION,
    SAME_SITE,
    gpu,
    request,
    snapshot,
)

OFF_PHASES = [p.value for p in Phase if not p.serves and p is not Phase.DRAINING]

CLICK = request("POST", "/gradio_api/queue/join", SAME_SITE)
CROSS = request("POST", "/gradio_api/queue/join", {**SAME_SITE, "Sec-Fetch-Site": "cross-site"})
CROSS_OLD = request("POST", "/gradio_api/queue/join", {"Origin": "http://evil"})
CLIENT = request("POST", "/gradio_api/queue/join", {"Content-Type": "application/json"})
PAGE = request("GET", "/", NAVIGATION)
CURL = request("GET", "/", {"Accept": "*/*"})
BOT = request("GET", "/", {"Accept": "text/html"})
HEARTBEAT = request("GET", "/gradio_api/heartbeat/abc", SAME_SITE)
SOCKET = request("WEBSOCKET", "/ws")


def decision(
    phase: str,
    what: Request = CLICK,
    who: Identity | None = ANYBODY,
    *,
    blocked: bool = False,
    **settings: object,
) -> Action:
    return decide(
        gpu(**settings),
        what,
        who,
        snapshot(phase, blocked=blocked),
    ).action


def test_every_phase_is_in_the_table() -> None:
    assert {*OFF_PHASES, "ready", "draining"} == {phase.value for phase in Phase}


@pytest.mark.parametrize("phase", [phase.value for phase in Phase])
@pytest.mark.parametrize("what", [CLICK, CLIENT, PAGE, CURL, HEARTBEAT, SOCKET])
def test_nobody_gets_anything_without_access(phase: str, what: Request) -> None:
    for wake_on in ("visit", "click", "never"):
        assert decision(phase, what, None, wake_on=wake_on) is Action.SIGN_IN


@pytest.mark.parametrize("who", [ANYBODY, BROWSER, KEY])
@pytest.mark.parametrize("what", [CLICK, CLIENT, PAGE, CURL, BOT, HEARTBEAT, SOCKET])
def test_a_ready_gpu_gets_everything(what: Request, who: Identity) -> None:
    assert decision("ready", what, who) is Action.FORWARD


@pytest.mark.parametrize("method", ["POST", "DELETE", "WEBSOCKET"])
def test_pages_of_configured_sites_use_and_wake_it(method: str) -> None:
    """Whatever Sec-Fetch-Site says; see `proxy.cors_origins`."""
    headers = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}
    what = request(method, "/gradio_api/queue/join", headers)
    assert decision("ready", what) is Action.CROSS_SITE
    allowed = replace(what, allowed_origin=True)
    assert decision("ready", allowed) is Action.FORWARD
    if method == "POST":
        assert decision("off", what) is Action.UNREADY
        assert decision("off", allowed) is Action.HOLD
    assert decision("ready", allowed, None) is Action.SIGN_IN


EVIL = {"Origin": "http://evil"}
LINK = {**NAVIGATION, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-User": "?1"}


@pytest.mark.parametrize(
    ("what", "forged"),
    [
        (CROSS, True),
        (CROSS_OLD, True),
        (request("POST", "/x", {"Origin": "null"}), True),
        (request("POST", "/x", {"Sec-Fetch-Site": "same-site"}), True),
        (
            request("POST", "/x", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
            True,
        ),
        (request("DELETE", "/x", EVIL), True),
        (request("WEBSOCKET", "/ws", EVIL), True),
        (request("WEBSOCKET", "/ws", {"Sec-Fetch-Site": "cross-site"}), True),
        (request("WEBSOCKET", "/ws", {"Origin": "http://me"}), False),
        (request("GET", "/gradio_api/queue/data", EVIL), True),  # it would keep the GPU on
        (request("GET", "/gradio_api/queue/data", {**EVIL, "Accept": "text/html"}), True),
        (request("GET", "/image.png", {"Sec-Fetch-Site": "cross-site"}), False),
        (request("OPTIONS", "/gradio_api/queue/join", EVIL), False),
        (request("GET", "/", LINK), False),
    ],
)
@pytest.mark.parametrize("phase", ["ready", "draining"])
def test_other_sites_do_not_use_it(what: Request, forged: bool, phase: str) -> None:
    settings = {"preset": "gradio"}
    for who in (ANYBODY, BROWSER):
        assert (decision(phase, what, who, **settings) is Action.CROSS_SITE) is forged
    # A page that has an API key may use it from anywhere.
    assert decision(phase, what, KEY, **settings) in (Action.FORWARD, Action.LEASE)


@pytest.mark.parametrize(
    ("what", "action"),
    [
        (CLICK, Action.LEASE),
        (CLIENT, Action.LEASE),
        (PAGE, Action.FORWARD),  # no Sec-Fetch-User: a page that loads itself is no use
        (request("GET", "/", {**NAVIGATION, "Sec-Fetch-User": "?1"}), Action.LEASE),
        (SOCKET, Action.LEASE),
        (CURL, Action.FORWARD),
        (HEARTBEAT, Action.FORWARD),
    ],
)
def test_draining_turns_use_into_a_lease_first(what: Request, action: Action) -> None:
    assert decision("draining", what) is action


def test_a_drain_that_a_block_began_cannot_be_taken_back() -> None:
    assert decision("draining", CLICK, blocked=True) is Action.HOLD
    assert decision("draining", PAGE, blocked=True) is Action.PAGE
    assert decision("draining", CURL, blocked=True) is Action.UNREADY


@pytest.mark.parametrize(
    ("what", "action"),
    [
        (CLICK, Action.HOLD),
        (CLIENT, Action.HOLD),
        (PAGE, Action.PAGE),
        (request("GET", "/", {**NAVIGATION, "Sec-Fetch-User": "?1"}), Action.PAGE),
        (SOCKET, Action.UNREADY),
        (CURL, Action.FORWARD),
        (HEARTBEAT, Action.FORWARD),
        (request("GET", "/gradio_api/queue/data?session_hash=x"), Action.FINISH),
        (request("POST", "/gradio_api/stream/x"), Action.FINISH),
        (request("POST", "/gradio_api/stream/x", {"Origin": "http://evil"}), Action.CROSS_SITE),
    ],
)
def test_nothing_new_goes_to_an_instance_that_the_cloud_takes_back(
    what: Request, action: Action
) -> None:
    leaving = replace(snapshot("draining"), node={"interrupted_at": "1000"})
    assert decide(gpu(preset="gradio"), what, ANYBODY, leaving).action is action
    if action is Action.FINISH:  # a block says that nothing goes on
        blocked = replace(leaving, blocks=(Lease("maintenance:x", float("inf")),))
        assert decide(gpu(preset="gradio"), what, ANYBODY, blocked).action is Action.UNREADY


@pytest.mark.parametrize("way", ["/", "//", "///", "/x/../", "/./", "/x//..//", "/../"])
@pytest.mark.parametrize("rest", ["admin", "admin/", "admin//", "admin/.", "admin/x", "admin/x/.."])
def test_a_refusal_holds_however_the_path_is_written(way: str, rest: str) -> None:
    for pattern in ("^/admin", "^/admin/" if "/" in rest else "^/admin$"):
        rules = [{"activity": "refused", "path": pattern}]
        assert decision("ready", request("GET", way + rest), KEY, rules=rules) is Action.REFUSE


def test_what_may_start_the_gpu_is_said_while_it_drains() -> None:
    drain = snapshot("draining")
    assert decide(gpu(), CLICK, ANYBODY, drain).wakes
    for what, who, settings in (
        (CROSS, ANYBODY, {}),
        (SOCKET, KEY, {}),
        (CLICK, ANYBODY, {"wake_on": "never"}),
    ):
        assert not decide(gpu(**settings), what, who, drain).wakes


@pytest.mark.parametrize("phase", OFF_PHASES)
@pytest.mark.parametrize(
    ("what", "who", "wake_on", "api", "action"),
    [
        # a tab that was left open
        (CLICK, ANYBODY, "visit", "hold", Action.HOLD),
        (CLICK, BROWSER, "visit", "hold", Action.HOLD),
        (CLICK, BROWSER, "visit", "fail", Action.HOLD),
        (CLICK, BROWSER, "click", "hold", Action.UNREADY),
        (CLICK, BROWSER, "never", "hold", Action.UNREADY),
        # a program
        (CLIENT, KEY, "visit", "hold", Action.HOLD),
        (CLIENT, KEY, "click", "hold", Action.HOLD),
        (CLIENT, KEY, "never", "hold", Action.HOLD),
        (CLIENT, KEY, "visit", "fail", Action.WAKE),
        (CLIENT, ANYBODY, "visit", "hold", Action.HOLD),
        (CLIENT, ANYBODY, "visit", "fail", Action.WAKE),
        (CLIENT, ANYBODY, "click", "hold", Action.UNREADY),
        (CLIENT, ANYBODY, "never", "hold", Action.UNREADY),
        # another site
        (CROSS, ANYBODY, "visit", "hold", Action.UNREADY),
        (CROSS, BROWSER, "visit", "hold", Action.UNREADY),
        (CROSS_OLD, ANYBODY, "visit", "hold", Action.UNREADY),
        # looking
        (PAGE, ANYBODY, "visit", "hold", Action.PAGE),
        (PAGE, BROWSER, "never", "hold", Action.PAGE),
        (BOT, ANYBODY, "visit", "hold", Action.PAGE),
        (CURL, ANYBODY, "visit", "hold", Action.UNREADY),
        (CURL, KEY, "visit", "hold", Action.UNREADY),
        (HEARTBEAT, BROWSER, "visit", "hold", Action.UNREADY),
        (SOCKET, KEY, "visit", "hold", Action.UNREADY),
    ],
)
def test_a_gpu_that_is_not_there(
    phase: str, what: Request, who: Identity, wake_on: str, api: str, action: Action
) -> None:
    assert decision(phase, what, who, wake_on=wake_on, api=api) is action


@pytest.mark.parametrize(
    ("wake_on", "page", "client", "key"),
    [("visit", True, True, True), ("click", True, False, True), ("never", False, False, True)],
)
def test_who_may_wake(wake_on: str, page: bool, client: bool, key: bool) -> None:
    config = gpu(wake_on=wake_on)
    for who in (ANYBODY, BROWSER):
        assert may_wake(config, who, by_page=True) is page
        assert may_wake(config, who) is client
    assert may_wake(config, KEY) is may_wake(config, KEY, by_page=True) is key
    assert not may_wake(config, None)
    assert not may_wake(config, None, by_page=True)


@pytest.mark.parametrize("phase", [*OFF_PHASES, "ready", "draining"])
def test_what_a_rule_refuses_is_refused_always(phase: str) -> None:
    rules = [{"activity": "refused", "path": "^/admin"}]
    assert decision(phase, request("GET", "/admin", NAVIGATION), KEY, rules=rules) is Action.REFUSE


def test_own_rules_come_first() -> None:
    quiet = [{"activity": "passive", "path": "^/gradio_api/queue/join$"}]
    assert decision("off", CLICK, rules=quiet) is Action.UNREADY
    loud = [{"activity": "wakes", "methods": ["GET"], "path": "^/render$"}]
    assert decision("off", request("GET", "/render"), rules=loud) is Action.HOLD


# What the presets make of requests

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
WAKES, KEEPS_ON, PASSIVE, MESSAGES = (
    Activity.WAKES,
    Activity.KEEPS_ON,
    Activity.PASSIVE,
    Activity.MESSAGES,
)


@pytest.mark.parametrize(
    ("preset", "method", "path", "headers", "activity"),
    [
        ("generic", "POST", "/x", SAME_SITE, WAKES),
        ("generic", "POST", "/x", {"Origin": "http://me"}, WAKES),
        ("generic", "POST", "/x", {"Authorization": "Bearer qk_1"}, WAKES),
        ("generic", "POST", "/x", {"X-API-Key": "qk_1"}, WAKES),
        ("generic", "PUT", "/x", {"Content-Type": "application/json; charset=utf-8"}, WAKES),
        ("generic", "POST", "/x", {}, KEEPS_ON),
        ("generic", "POST", "/x", FORM, KEEPS_ON),
        ("generic", "POST", "/x", {"Authorization": "Bearer sk-1"}, KEEPS_ON),
        ("generic", "POST", "/x", {"Origin": "null"}, KEEPS_ON),
        ("generic", "POST", "/xmlrpc.php", {"Content-Type": "text/xml"}, KEEPS_ON),
        ("generic", "GET", "/x", SAME_SITE, PASSIVE),
        ("generic", "GET", "/x", JSON, PASSIVE),
        ("generic", "PROPFIND", "/x", JSON, PASSIVE),
        ("generic", "WEBSOCKET", "/x", {}, MESSAGES),
        ("gradio", "POST", "/gradio_api/queue/join", {}, WAKES),
        ("gradio", "POST", "/gradio_api/run/predict", {}, WAKES),
        ("gradio", "POST", "/gradio_api/call/v2/chat", {}, WAKES),
        ("gradio", "POST", "/gradio_api/call/chat", {}, WAKES),
        ("gradio", "POST", "/gradio_api/upload", {}, WAKES),
        ("gradio", "POST", "/run/predict/", {}, WAKES),
        ("gradio", "POST", "/api/predict", {}, WAKES),
        ("gradio", "POST", "/api/v1/pods", {}, PASSIVE),
        ("gradio", "POST", "/api", {}, PASSIVE),
        ("gradio", "POST", "/wp-login.php", {}, PASSIVE),
        ("gradio", "POST", "/", {}, PASSIVE),
        ("gradio", "GET", "/gradio_api/queue/data", {}, KEEPS_ON),
        ("gradio", "GET", "/gradio_api/call/chat/17", {}, KEEPS_ON),
        ("gradio", "GET", "/gradio_api/heartbeat/x", {}, PASSIVE),
        ("gradio", "POST", "/gradio_api/heartbeat/x", {}, PASSIVE),
        ("openai", "POST", "/v1/chat/completions", {}, WAKES),
        ("openai", "GET", "/v1/models", {}, PASSIVE),
        ("openai", "POST", "/xmlrpc.php", {}, PASSIVE),
        ("open-webui", "POST", "/api/chat/completions", {}, WAKES),
        ("open-webui", "GET", "/ws/socket.io/", {}, PASSIVE),
        ("open-webui", "WEBSOCKET", "/ws/socket.io/", {}, PASSIVE),
        ("open-webui", "POST", "/wp-login.php", {}, KEEPS_ON),
    ],
)
def test_presets(
    preset: str, method: str, path: str, headers: dict[str, str], activity: Activity
) -> None:
    asked = request(method, path, headers)
    assert decide(gpu(preset=preset), asked, ANYBODY, snapshot("ready")).activity is activity


@pytest.mark.parametrize("preset", ["generic", "gradio", "openai", "open-webui"])
@pytest.mark.parametrize(
    ("more", "activity"),
    [
        ({"Sec-Fetch-User": "?1"}, KEEPS_ON),
        ({}, PASSIVE),
        ({"Sec-Fetch-User": "?1", "Sec-Purpose": "prefetch"}, PASSIVE),
        ({"Sec-Fetch-User": "?1", "Sec-Purpose": "prefetch;prerender"}, PASSIVE),
        ({"Sec-Fetch-User": "?1", "Purpose": "prefetch"}, PASSIVE),
    ],
)
def test_opening_a_page(preset: str, more: dict[str, str], activity: Activity) -> None:
    asked = request("GET", "/", {**NAVIGATION, **more})
    assert decide(gpu(preset=preset), asked, ANYBODY, snapshot("ready")).activity is activity
    assert decision("off", asked, preset=preset) is Action.PAGE
