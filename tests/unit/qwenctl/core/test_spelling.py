"""Paths that can be read in several ways: what is ruled on is what is served."""

from __future__ import annotations

import pytest

from qwenctl.core.presets import PRESETS
from qwenctl.core.rules import Activity, Ambiguous, Rule, RuleTable
from qwenctl.core.spelling import is_plain, malformed

GRADIO = RuleTable(PRESETS["gradio"])
JOIN = "/gradio_api/queue/join"


@pytest.mark.parametrize(
    "path",
    [
        "//gradio_api/queue/join",
        "///gradio_api/queue/join",
        "/gradio_api//queue/join",
        "/gradio_api/queue//join",
        "/gradio_api/queue/join//",
        "/gradio_api/queue/join;x",
        "/gradio_api/queue/join%3bx",
        "/gradio_api;v=1/queue;w/join",
        "/gradio_api;x//queue/join",
        "/gradio_api\\queue/join",
        "/gradio_api%5Cqueue%5cjoin",
        "/gradio_api/%2Fqueue/join",
        "/x/../gradio_api/queue/join",
        "/./gradio_api/queue/join",
        "/gradio_api/./queue/join",
        "/_qwenctl/../gradio_api/queue/join",
        "/_qwenctl/..;/gradio_api/queue/join",
        "/x/%2e%2e/gradio_api/queue/join",
        "/x/%2E./gradio_api/queue/join",
        "/x%2f..%2fgradio_api/queue/join",
        "/x\\..\\gradio_api\\queue\\join",
        "/x%5c..%5cgradio_api/queue/join",
        "/x/%252e%252e/gradio_api/queue/join",
        "/x/..%252fgradio_api/queue/join",
        "/gradio_api/queue/join/.",
        "/gradio_api/queue/join/x/..",
        "/gradio_api/queue/join%00",
        "/gradio_api/queue/join%0a",
        "/gradio_api/queue/join%7f",
        "/gradio_api/queue/join#x",
        "/gradio_api/queue/join%",
        "/gradio_api/queue/join%zz",
        "/gradio_api/queue/join%u0041",
    ],
)
def test_another_spelling_of_a_path_that_wakes_is_refused(path: str) -> None:
    assert GRADIO.classify_sent("POST", JOIN, {}) is Activity.WAKES
    with pytest.raises(Ambiguous):
        GRADIO.classify_sent("POST", path, {})


@pytest.mark.parametrize(
    "path", ["/GRADIO_API/queue/join", "/gradio_api/Queue/Join", "/gradio_api%2Fqueue%2fjoin"]
)
def test_what_some_server_takes_for_use_counts_as_use(path: str) -> None:
    assert GRADIO.classify_sent("POST", path, {}) is Activity.WAKES


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/tmp/gradio/a%20b/100%25.png",
        "/gradio_api/file=%2Ftmp%2Fgradio%2Fx.png",
        "/gradio_api/file=https://example.org/x.png",
        "/gradio_api/file=https%3A%2F%2Fexample.org%2Fx.png",
        "/gradio_api/file=C:%5CUsers%5Cx.png",
        "/assets/index-BxY12.js;v=3",
        "/assets//app.css",
        "/.well-known/x",
        "/a/..b/...",
        "/a/b../c.",
        "/api/models/org%2Fname",
        "/%E4%BD%A0%E5%A5%BD",
        "/%FF",
        "/a+b=c&d,e:f@g!h*i'(j)$~",
        "/a%2525",
    ],
)
def test_paths_that_applications_use(path: str) -> None:
    for preset in PRESETS.values():
        assert RuleTable(preset).classify_sent("GET", path, {}) is Activity.PASSIVE
    for preset in ("open-webui", "generic"):
        assert RuleTable(PRESETS[preset]).classify_sent("POST", path, {}) is Activity.KEEPS_ON


@pytest.mark.parametrize(
    "path",
    [
        "//admin",
        "/ADMIN",
        "/;x/admin",
        "/admin;x",
        "/x/..%2fadmin",
        "/x/%2e%2e/admin",
        "/x\\..\\admin",
    ],
)
def test_a_refusal_is_told_as_such_however_the_path_is_written(path: str) -> None:
    table = RuleTable((Rule(activity="refused", path="^/admin"), Rule(activity="wakes")))
    assert table.classify_sent("GET", path, {}) is Activity.REFUSED
    assert table.classify_sent("GET", "/x", {}) is Activity.WAKES


@pytest.mark.parametrize("path", ["/x/../admin/", "/x/..%2fadmin/", "/y/../admin/."])
def test_a_folder_is_not_the_file_of_its_name(path: str) -> None:
    folder = RuleTable((Rule(activity="refused", path="^/admin/$"), Rule(activity="wakes")))
    file = RuleTable((Rule(activity="refused", path="^/admin$"), Rule(activity="wakes")))
    assert folder.classify_sent("GET", path, {}) is Activity.REFUSED
    assert file.classify_sent("GET", path, {}) is Activity.WAKES


def test_a_rule_may_name_an_odd_path_itself() -> None:
    table = RuleTable(
        (Rule(activity="wakes", path="^/Run;v=1//$"), Rule(activity="refused", path="^/b;c$"))
    )
    assert table.classify_sent("POST", "/Run;v=1//", {}) is Activity.WAKES
    assert table.classify_sent("POST", "/b;c", {}) is Activity.REFUSED


def test_what_listens_to_answers_is_not_evaded_either() -> None:
    table = RuleTable((Rule(activity="passive", path="^/ws/x", kept_on_by="message"),))
    for path in ("/ws/x", "/WS/x", "/ws%2Fx"):
        assert table.classify_sent("GET", path, {}) is Activity.PASSIVE
        assert table.kept_on_by("GET", path, {})
    with pytest.raises(Ambiguous):
        table.classify_sent("GET", "//ws/x", {})


def test_plain_paths_cost_nothing() -> None:
    assert is_plain("/gradio_api/queue/data")
    assert is_plain("/a.b/c..d")
    assert not is_plain("/a;b")
    assert not malformed("/a;b")
