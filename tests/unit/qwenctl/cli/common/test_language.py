"""The terminal's language: which, and that both tables say the same."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from math import inf

import pytest

from qwenctl.cli.common import language
from qwenctl.cli.common.language import padded, said, table
from qwenctl.core.explain import explain
from qwenctl.core.failures import MEANINGS
from qwenctl.core.snapshot import Lease
from qwenctl.core.words import CAUSES, cause_words, name_words
from qwenctl.lib.text import duration
from tests.unit.qwenctl.core.test_status import FAILURE, LOADING, NOW, lease, snap


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCTL_LANG", "zh")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LC_ALL": "zh_CN.UTF-8", "QWENCTL_LANG": "en"}, "en"),
        ({"LC_ALL": "de_DE.UTF-8", "QWENCTL_LANG": "zh"}, "zh"),
        ({"LANG": "zha"}, "en"),  # Zhuang is not Chinese
        ({"LANG": "ZH"}, "zh"),
    ],
)
def test_which_language(environment: dict[str, str], expected: str) -> None:
    assert language.language(environment) == expected


def test_both_tables_have_the_same_keys_and_placeholders() -> None:
    en, zh = table("en"), table("zh")
    assert list(en) == list(zh)

    def places(words: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(words) if name)

    assert not [key for key in en if places(en[key]) != places(zh[key])]
    assert not [key for key in en if len(set(places(en[key]))) != len(places(en[key]))]
    han = re.compile(r"[\u4e00-\u9fff]")
    assert not [key for key in zh if not re.search(r"[\u4e00-\u9fff\uff00-\uffef]", zh[key])]
    assert not [key for key in en if han.search(en[key])]
    assert not [word for word in ("节点代理", "代理程序") if word in "".join(zh.values())]


def test_english_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QWENCTL_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C")
    assert said("main is off already") == "main is off already"
    assert padded("cloud", 11) == "cloud      "


@pytest.mark.usefixtures("chinese")
def test_labels_are_padded_by_columns() -> None:
    assert padded("cloud", 11) == "云平台     "


SNAPSHOTS = {
    "unknown": replace(snap("off"), state={"phase": "off"}),
    "off": snap("off"),
    "wanted": snap("starting", leases=(lease(), lease("pin:ada", 7000.0, reason="demo"))),
    "loading": replace(snap("loading", leases=(lease(),)), node={"version": "1"}),
    "ready": snap("ready", leases=(lease(),)),
    "working": snap("ready", leases=(lease("busy:main"), lease("inflight:vm"))),
    "draining": snap("draining"),
    "stopping": snap("stopping", leases=(lease(),)),
    "failed": snap("failed", leases=(lease(),), failure=FAILURE),
    "failed, unwanted": snap("failed", failure=FAILURE),
    "blocked": snap("off", blocks=(lease("maintenance:bob", reason="driver"),)),
    "blocked under a standing up": snap(
        "off", blocks=(lease("maintenance:bob"),), leases=(lease("pin:ada", 7000.0),)
    ),
    "blocked for good": snap(
        "off", blocks=(Lease("maintenance:bob", inf, "driver", "bob", NOW - 60),)
    ),
    "off-hours": snap("off", blocks=(lease("off-hours:nights", actor="", reason=""),)),
    "not asked by the cloud": snap("ready", leases=(lease(),), observe_error="timed out"),
}

NAMES = re.compile(
    r"\(?qwenctl (up|block|serve)\)?|demo|driver|nights|none free|timed out|anna|ada|bob|vm"
)
"""What others have named or said, which stays as it is."""


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_why_is_chinese_to_the_last_word(name: str) -> None:
    """A sentence that was changed in English without its phrase shows here."""
    reasons = explain(SNAPSHOTS[name], LOADING)
    for reason in reasons[1:]:
        words = NAMES.sub("", said(reason.text))
        assert not re.search(r"[A-Za-z]{2,}", words), words
    first = f"main {'' if reasons[0].text.startswith('failed') else 'is '}{reasons[0].text}"
    if name == "unknown":
        first = "main's state is " + reasons[0].text
    assert not re.search(r"[A-Za-z]{2,}", NAMES.sub("", said(first).replace("main", "")))


@pytest.mark.usefixtures("chinese")
def test_every_failure_duration_and_holder_has_its_word() -> None:
    texts = [cause_words(code) for code in (*MEANINGS, *CAUSES)]
    texts += [duration(seconds) for seconds in (0.1, 12, 60, 85, 3600, 3700, 86400, 180000)]
    holders = ("request:x", "inflight:x", "busy:x", "adopted:x", "pin:x", "prewarm:x")
    blocks = ("maintenance:x", "off-hours:x", "former:x", "budget")
    texts += [name_words(name) for name in holders + blocks]
    texts += [name_words(name, "", "y") for name in ("request:x", "pin:x", "prewarm:x", *blocks)]
    left = [text for text in texts if said(text) == text]
    assert left == []


@pytest.mark.usefixtures("chinese")
def test_errors_that_users_meet() -> None:
    assert "已被停用" in said(
        "main is blocked by bob (qwenctl block): driver, for another 1 h 59 min; "
        "`qwenctl unblock` lifts it"
    )
    assert said("say which GPU with --gpu; configured: a, b") == (
        "请用 --gpu 指定 GPU；已配置：a, b"
    )


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    "line",
    [
        "the cloud says running",
        "the cloud says unknown, waiting for running work that the node reports",
        "still on: it was blocked",
        "cloud: the cloud refused",
        "next attempt in 5.0 s",
        "main is not off after 5 s (draining); run `qwenctl down` again or `qwenctl serve`",
        (
            "main is not off after 5 s (stopping, waiting for running work that the node reports); "
            "it goes on stopping while the proxy vm runs; else run `qwenctl down` again or "
            "`qwenctl serve`"
        ),
        "main: the cloud has not said within 2.5 s whether it is on",
        (
            "main is still on, and costs: the cloud refused; its agent stops it in about 5 min, "
            "unless work is running. Stop it in the cloud's console, or mend this and run "
            "`qwenctl down` again"
        ),
        "main goes on stopping.",
        "main goes on stopping once `qwenctl down` or `qwenctl serve` runs again.",
    ],
)
def test_the_lines_of_down_and_of_many_are_chinese(line: str) -> None:
    words = re.sub(r"`[^`]*`|main|vm", "", said(line))
    assert not re.search(r"[A-Za-z]{2,}", words), words
