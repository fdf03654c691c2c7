"""Pages of other sites that use the GPU from a browser: preflights, and answers they may read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.integration.proxy.running import KEY, RunningProxy, gpu, password_access, running

CHAT = "https://chat.example"
EVIL = "https://evil.example"
FOREIGN = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
WANTED = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
ALLOW_ORIGIN = "Access-Control-Allow-Origin"
CREDENTIALS = "Access-Control-Allow-Credentials"
OURS = (f"{CHAT}/", "http://localhost:3000")


def of(proxy: RunningProxy, name: str, method: str, path: str, **options: Any) -> requests.Response:
    headers = {"Host": f"{name}.localhost", **options.pop("headers", {})}
    return requests.request(
        method, proxy.url(path), headers=headers, timeout=20, allow_redirects=False, **options
    )


def preflight(
    proxy: RunningProxy, name: str, origin: str = CHAT, path: str = "/v1/chat/completions"
) -> requests.Response:
    return of(proxy, name, "OPTIONS", path, headers={"Origin": origin, **FOREIGN, **WANTED})


def starting(tmp_path_factory: pytest.TempPathFactory, **settings: Any) -> Iterator[RunningProxy]:
    gpus = {name: gpu(hosts=[f"{name}.localhost"], preset="openai") for name in ("off", "on")}
    with running(tmp_path_factory.mktemp("cors"), gpu=gpus, **settings) as proxy:
        proxy.wake("on")
        yield proxy


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    yield from starting(
        tmp_path_factory, proxy={"cors_origins": list(OURS)}, access=password_access()
    )


@pytest.fixture(scope="module")
def anonymous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    yield from starting(tmp_path_factory, proxy={"cors_origins": list(OURS)})


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    yield from starting(tmp_path_factory, proxy={"cors_origins": ["*"]}, access=password_access())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """Access control, and no site configured."""
    yield from starting(tmp_path_factory, access=password_access())


@pytest.mark.parametrize("name", ["off", "on"])
@pytest.mark.parametrize("origin", [CHAT, "http://localhost:3000"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/rerank"])
def test_a_preflight_is_answered_without_key_and_waking(
    configured: RunningProxy, name: str, origin: str, path: str
) -> None:
    answer = preflight(configured, name, origin, path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers[ALLOW_ORIGIN] == origin
    assert answer.headers[CREDENTIALS] == "true"
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert (
        answer.headers["Access-Control-Allow-Headers"] == WANTED["Access-Control-Request-Headers"]
    )
    assert "Origin" in answer.headers["Vary"].replace(",", " ").split()
    assert configured.untouched("off")


@pytest.mark.parametrize("name", ["off", "on"])
@pytest.mark.parametrize("origin", [EVIL, "null", "*", f"{CHAT}.evil.example", f"{CHAT}:8443"])
def test_a_preflight_of_another_site_is_refused_by_name(
    configured: RunningProxy, name: str, origin: str
) -> None:
    answer = preflight(configured, name, origin)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert "proxy.cors_origins" in answer.json()["detail"]
    assert ALLOW_ORIGIN not in answer.headers
    assert "Origin" in answer.headers["Vary"]


def test_errors_of_ours_can_be_read_by_the_page(configured: RunningProxy) -> None:
    for origin, allowed in ((CHAT, CHAT), (EVIL, None)):
        headers = {"Origin": origin, **FOREIGN}
        answers = [
            of(configured, "off", "POST", "/v1/chat/completions", headers=headers),
            of(configured, "off", "GET", "/_qwenctl/api/status", headers=headers),
            of(configured, "off", "GET", "/x", headers={**headers, "X-API-Key": KEY}),
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 503]
        assert [answer.headers.get(ALLOW_ORIGIN) for answer in answers] == [allowed] * 3
        assert all("Origin" in answer.headers["Vary"] for answer in answers)
    assert "Origin" in of(configured, "off", "GET", "/x").headers["Vary"]  # for caches


def test_the_nodes_answer_has_one_origin(configured: RunningProxy) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    for origin, allowed in ((CHAT, CHAT), (EVIL, None)):
        headers = {"Origin": origin, **FOREIGN, **key}
        answer = of(configured, "on", "POST", "/v1/every-site", headers=headers)
        assert answer.status_code == 200
        assert answer.headers.get(ALLOW_ORIGIN) == allowed
        assert answer.headers.get(CREDENTIALS) == (allowed and "true")


def test_a_page_of_a_configured_site_passes_the_check_of_sites(anonymous: RunningProxy) -> None:
    """Without keys, other sites must not use what only this machine reaches."""
    for name in ("on", "off"):
        headers = {"Origin": EVIL, **FOREIGN}
        refused = of(anonymous, name, "POST", "/v1/x", headers=headers, json={})
        assert refused.status_code == (403 if name == "on" else 503)
        assert "proxy.cors_origins" in refused.json()["detail"]
    assert anonymous.untouched("off")
    for name in ("on", "off"):
        answer = of(anonymous, name, "POST", "/v1/x", headers={"Origin": CHAT, **FOREIGN}, json={})
        assert answer.status_code == 200  # it woke it
        assert answer.headers[ALLOW_ORIGIN] == CHAT
    form = of(anonymous, "on", "POST", "/_qwenctl/wake", headers={"Origin": CHAT, **FOREIGN})
    assert form.status_code == 403  # our own forms are for our own pages


def test_everybody_without_credentials(everybody: RunningProxy) -> None:
    answer = preflight(everybody, "off", EVIL)
    assert (answer.status_code, answer.headers[ALLOW_ORIGIN]) == (204, "*")
    assert CREDENTIALS not in answer.headers
    for origin in (EVIL, "*"):
        headers = {"Origin": origin, **FOREIGN, "X-API-Key": KEY}
        used = of(everybody, "on", "POST", "/v1/x", headers=headers)
        assert (used.status_code, used.headers[ALLOW_ORIGIN]) == (200, "*")
        assert CREDENTIALS not in used.headers


def test_without_sites_a_sleeping_gpu_refuses_a_preflight(plain: RunningProxy) -> None:
    answer = preflight(plain, "off")
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert "proxy.cors_origins" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers
    assert plain.untouched("off")


def test_without_sites_the_node_answers_when_it_is_on(plain: RunningProxy) -> None:
    answer = preflight(plain, "on", path="/v1/seen")
    assert answer.status_code == 200
    assert [entry["method"] for entry in plain.journal_of("/v1/seen", "on")] == ["OPTIONS"]


@pytest.mark.parametrize(
    ("method", "headers", "data"),
    [
        ("OPTIONS", {}, b""),
        ("OPTIONS", {"Origin": CHAT}, b""),
        ("OPTIONS", {"Origin": CHAT, **WANTED}, b"body"),
        ("POST", {"Origin": CHAT, **WANTED}, b""),
    ],
    ids=["no origin", "no method asked for", "with a body", "no OPTIONS"],
)
def test_what_is_no_preflight_needs_a_key(
    plain: RunningProxy, method: str, headers: dict[str, str], data: bytes
) -> None:
    answer = of(plain, "on", method, "/v1/none", headers=headers, data=data)
    assert answer.status_code == 401
    assert plain.journal_of("/v1/none", "on") == []


def test_the_gate_lets_preflights_through_as_the_proxy_would(
    plain: RunningProxy, configured: RunningProxy
) -> None:
    headers = {"X-Original-Method": "OPTIONS", "X-Original-URI": "/v1/x"}
    headers |= {"Origin": CHAT, **WANTED}
    gate = "/_qwenctl/gate"
    assert of(plain, "on", "GET", gate, headers=headers).status_code == 204
    assert of(plain, "off", "GET", gate, headers=headers).status_code == 403
    assert of(configured, "on", "GET", gate, headers=headers).status_code == 403
