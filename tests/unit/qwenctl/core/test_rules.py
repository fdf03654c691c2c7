"""`qwenctl.core.rules`: what counts as use, preset by preset, with the requests that are really sent."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.presets import PRESETS
from qwenctl.core.rules import Activity, Rule, RuleTable

NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-user": "?1", "sec-fetch-dest": "document"}
RELOAD = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}  # by a script, by nobody
PREFETCH = {**NAVIGATION, "sec-purpose": "prefetch;prerender"}
OLD_PREFETCH = {**NAVIGATION, "purpose": "prefetch"}
FETCH = {"sec-fetch-mode": "cors"}

W, K, M, P = Activity.WAKES, Activity.KEEPS_ON, Activity.MESSAGES, Activity.PASSIVE

Row = tuple[str, str, dict[str, str], Activity]

EVERYWHERE: list[Row] = [
    ("GET", "/", NAVIGATION, K),
    ("GET", "/", {}, P),  # curl, monitors
    ("GET", "/", RELOAD, P),
    ("HEAD", "/", {}, P),
    ("GET", "/", PREFETCH, P),
    ("GET", "/", OLD_PREFETCH, P),
    ("GET", "/favicon.ico", FETCH, P),
    ("GET", "/robots.txt", {}, P),
    ("GET", "/.env", {}, P),
    ("GET", "/wp-login.php?a=../../etc/passwd", {}, P),
    ("OPTIONS", "/anything", FETCH, P),
    ("PROPFIND", "/", {}, P),
    ("WEBSOCKET", "/live", {}, M),
]

TABLES: dict[str, list[Row]] = {
    "gradio": [
        ("GET", "/gradio_api/heartbeat/abc123", FETCH, P),
        ("GET", "/heartbeat/abc123", FETCH, P),
        ("GET", "/gradio_api/app_id", FETCH, P),
        ("GET", "/gradio_api/app_id/", FETCH, P),
        ("GET", "/monitoring/summary", FETCH, P),
        ("POST", "/gradio_api/run/predict", FETCH, W),
        ("POST", "/run/predict", FETCH, W),
        ("POST", "/gradio_api/queue/join", FETCH, W),
        ("POST", "/queue/join", {}, W),
        ("POST", "/gradio_api/upload", FETCH, W),
        ("POST", "/gradio_api/call/chat", {}, W),
        ("POST", "/gradio_api/call/v2/chat", {}, W),
        ("POST", "/api/v1/users/login", {}, P),  # a scanner's
        ("GET", "/gradio_api/call/chat/0123", {}, K),
        ("GET", "/gradio_api/queue/data", FETCH, K),
        ("GET", "/queue/data", FETCH, K),
        ("GET", "/gradio_api/upload_progress", FETCH, K),
        ("POST", "/gradio_api/stream/abc", FETCH, K),
        ("GET", "/gradio_api/file=/tmp/x.png", FETCH, P),
        ("GET", "/assets/index.js", FETCH, P),
        ("GET", "/config", FETCH, P),
        ("POST", "/gradio_api/queue/joined", {}, P),
        ("POST", "/xmlrpc.php", {}, P),
        ("POST", "/foo/gradio_api/run/predict", {}, P),
        ("GET", "/gradio_api/run/predict", {}, P),
    ],
    "open-webui": [
        ("GET", "/ws/socket.io/", FETCH, P),
        ("POST", "/ws/socket.io/", FETCH, P),
        ("WEBSOCKET", "/ws/socket.io/", {}, P),
        ("GET", "/health", {}, P),
        ("GET", "/api/config", FETCH, P),
        ("GET", "/api/version", FETCH, P),
        ("POST", "/api/chat/completions", FETCH, W),
        ("POST", "/ollama/api/generate", FETCH, W),
        ("POST", "/openai/chat/completions", FETCH, W),
        ("POST", "/api/v1/images/generations", FETCH, W),
        ("POST", "/api/v1/notes/create", FETCH, K),
        ("DELETE", "/api/v1/chats/1", FETCH, K),
        ("GET", "/api/v1/chats/", FETCH, P),
    ],
    "openai": [
        ("GET", "/health", {}, P),
        ("GET", "/metrics", {}, P),
        ("POST", "/metrics", {}, P),
        ("GET", "/v1/models", {}, P),
        ("POST", "/v1/chat/completions", {}, W),
        ("POST", "/v1/embeddings", {}, W),
        ("POST", "/login.php", {}, P),
    ],
    "generic": [
        ("POST", "/anything", {}, K),  # a scanner's
        ("POST", "/xmlrpc.php", {"content-type": "text/xml"}, K),
        ("POST", "/x", {"content-type": "application/x-www-form-urlencoded"}, K),
        ("POST", "/x", {"content-type": "application/json; charset=utf-8"}, W),
        ("POST", "/x", {"sec-fetch-site": "same-origin"}, W),
        ("POST", "/x", {"sec-fetch-site": "cross-site"}, K),
        ("PUT", "/x", {"origin": "https://gpu.test"}, W),
        ("PUT", "/x", {"origin": "null"}, K),
        ("PATCH", "/x", {"authorization": "Bearer qk_abc"}, W),
        ("PATCH", "/x", {"authorization": "Basic abc"}, K),
        ("DELETE", "/x", {"x-api-key": "qk_abc"}, W),
        ("DELETE", "/x", {"x-api-key": "abc"}, K),
        ("GET", "/file", FETCH, P),
    ],
}


@pytest.mark.parametrize(
    ("preset", "method", "path", "headers", "activity"),
    [
        (preset, *row)
        for preset, rows in TABLES.items()
        for row in [*rows, *EVERYWHERE]
        if not (preset == "generic" and row[0] == "PROPFIND")
    ],
)
def test_presets(
    preset: str, method: str, path: str, headers: dict[str, str], activity: Activity
) -> None:
    assert RuleTable(PRESETS[preset]).classify(method, path, headers) is activity


def test_every_preset_has_its_table() -> None:
    assert set(TABLES) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_get_or_head_wakes(preset: str) -> None:
    """Whatever the path and the headers: GET never wakes by itself."""
    paths = [path for rows in TABLES.values() for _, path, _, _ in rows]
    for path in [*paths, *(row[1] for row in EVERYWHERE)]:
        for headers in ({}, NAVIGATION, FETCH, PREFETCH):
            for method in ("GET", "HEAD", "OPTIONS"):
                assert RuleTable(PRESETS[preset]).classify(method, path, headers) is not W


TOKEN = '42["events",{"chat_id":"c","message_id":"m","data":{"type":"chat:completion","data":{}}}]'
TYPING = '42["events:channel",{"channel_id":"c","data":{"type":"typing","data":{"typing":true}}}]'
ANSWER = '42["events:channel",{"channel_id":"c","data":{"type":"message:update","data":{}}}]'
USAGE = '42["usage",{"models":["qwen"]}]'


class TestOpenWebUIsSocket:
    """What the server sends over socket.io: the text of answers, and the chatter of idle tabs."""

    def found(self, said: str, method: str = "WEBSOCKET") -> bool:
        pattern = RuleTable(PRESETS["open-webui"]).kept_on_by(method, "/ws/socket.io/", FETCH)
        assert pattern is not None
        return pattern.search(said) is not None

    @pytest.mark.parametrize("method", ["WEBSOCKET", "GET"])
    @pytest.mark.parametrize(
        "said",
        [
            TOKEN,
            TOKEN.replace("events", "chat-events"),  # before 0.6
            TOKEN.replace("42", "4213"),  # it asks for a confirmation of receipt
            TOKEN.replace("42", "451-"),  # with an attachment
            ANSWER,
            ANSWER.replace("events:channel", "channel-events"),
            f"2\x1e{USAGE}\x1e{TOKEN}",  # long polling: several in an answer
        ],
    )
    def test_an_answer_keeps_it_on(self, method: str, said: str) -> None:
        assert self.found(said, method)

    @pytest.mark.parametrize(
        "said",
        [
            "2",
            "3",
            "6",
            "2probe",
            '0{"sid":"x","upgrades":["websocket"],"pingTimeout":20000,"pingInterval":25000}',
            '40{"sid":"x"}',
            USAGE,
            '42["user-list",{"user_ids":["events"]}]',
            '42["user-count",{"count":3}]',
            '43["events"]',
            TYPING,
            '42["events:channel",{"data":{"type":"channel:created"}}]',
            '42["group-membership-update",{"action":"added"}]',
            '42["ydoc:awareness:update",{"update":[1]}]',
            f"2\x1e{USAGE}\x1e{TYPING}",
        ],
    )
    def test_an_idle_tab_does_not(self, said: str) -> None:
        assert not self.found(said)
        assert not self.found(said, "GET")

    def test_nothing_else_is_searched(self) -> None:
        table = RuleTable(PRESETS["open-webui"])
        assert table.listens
        assert table.kept_on_by("POST", "/ws/socket.io/", FETCH) is None
        assert table.kept_on_by("GET", "/api/config", FETCH) is None
        others = (RuleTable(rules) for name, rules in PRESETS.items() if name != "open-webui")
        assert not any(table.listens for table in others)


class TestTable:
    def test_the_first_match_wins_and_own_rules_come_first(self) -> None:
        own = Rule(activity="refused", path="^/gradio_api/upload")
        gpu = GpuConfig(rules=(own,))
        assert gpu.rule_table.classify("POST", "/gradio_api/upload", {}) is Activity.REFUSED
        assert gpu.rule_table.classify("POST", "/gradio_api/queue/join", {}) is W

    def test_invented_methods_do_not_fill_the_memory(self) -> None:
        table = RuleTable(PRESETS["generic"])
        for number in range(1000):
            assert table.classify(f"M{number}", "/", {}) is P
        assert len(table._by_method) <= 64
        assert table.classify("POST", "/", {"x-api-key": "qk_a"}) is W

    def test_what_nothing_matches_is_passive(self) -> None:
        assert RuleTable(()).classify("POST", "/", {}) is P

    def test_all_conditions_must_hold(self) -> None:
        rule = Rule(activity="wakes", methods=("POST",), path="^/v1/", headers={"X-Kind": "^chat$"})
        table = RuleTable((rule,))
        assert table.classify("POST", "/v1/x", {"x-kind": "chat"}) is W
        assert table.classify("GET", "/v1/x", {"x-kind": "chat"}) is P
        assert table.classify("POST", "/v2/x", {"x-kind": "chat"}) is P
        assert table.classify("POST", "/v1/x", {"x-kind": "chats"}) is P
        assert table.classify("POST", "/v1/x", {}) is P

    def test_a_missing_header_is_empty(self) -> None:
        rule = Rule(activity="wakes", headers={"purpose": "^$"})
        table = RuleTable((rule,))
        assert table.classify("GET", "/", {}) is W
        assert table.classify("GET", "/", {"purpose": "prefetch"}) is P

    @pytest.mark.parametrize(
        "fields",
        [
            {"activity": "wake"},
            {"activity": "wakes", "path": "("},
            {"activity": "wakes", "headers": {"x": "["}},
            {"activity": "passive", "kept_on_by": "("},
            {"activity": "wakes", "pathh": "x"},
        ],
    )
    def test_bad_rules(self, fields: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            Rule.model_validate(fields)
