"""Texts of the pages: the language is negotiated, both languages say everything."""

from __future__ import annotations

import re
import string

import pytest

from proxy.control.i18n import negotiate, text
from qwenctl.clouds import base
from tests.unit.proxy.control.page_parts import PROXY


@pytest.mark.parametrize(
    ("header", "forced", "expected"),
    [
        ("", "auto", "en"),
        ("*", "auto", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "auto", "zh"),
        ("zh-Hant-TW", "auto", "zh"),
        ("ZH_cn", "auto", "zh"),
        ("en-GB,zh;q=0.1", "auto", "en"),
        ("en;q=0.3, zh-SG;q=0.7", "auto", "zh"),
        ("de, fr;q=0.9, zh;q=0.2", "auto", "zh"),
        ("de-DE,de", "auto", "en"),
        ("zh;q=0, en;q=0.1", "auto", "en"),
        ("zha, en", "auto", "en"),  # Zhuang is not Chinese
        (";;q=,,zh;q=x,\x00", "auto", "en"),
        ("zh-CN", "en", "en"),
        ("en", "zh", "zh"),
    ],
)
def test_the_language_follows_quality_and_the_setting(
    header: str, forced: str, expected: str
) -> None:
    assert negotiate(header, forced) == expected


def test_both_languages_are_complete() -> None:
    en, zh = text("en"), text("zh")
    assert en.keys() == zh.keys()

    def fields(words: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(words) if name is not None}

    assert not [key for key in en if not en[key] or not zh[key]]
    assert not [key for key in en if fields(en[key]) != fields(zh[key])]
    han = re.compile(r"[\u4e00-\u9fff]")
    assert not [key for key in en if han.search(en[key])]
    assert not [key for key in zh if not han.search(zh[key]) and key != "html_lang"]


def test_the_script_asks_only_for_texts_that_exist() -> None:
    source = (PROXY / "static" / "waiting.js").read_text(encoding="utf-8")
    tables = {key.partition(".")[0] for key in text("en")}
    asked = {
        literal
        for literal in re.findall(r'"([a-z_]+\.[a-z0-9_.-]+)"', source)
        if literal.partition(".")[0] in tables
    }
    assert len(asked) > 15
    assert asked <= text("en").keys()
    prefixes = set(re.findall(r"`([a-z_]+\.)\$\{", source))
    assert prefixes >= {"headline.", "lead.", "failure.", "advice.", "state.", "step."}
    assert all(any(key.startswith(prefix) for key in text("en")) for prefix in prefixes)


def test_every_failure_that_a_provider_can_report_has_a_sentence() -> None:
    codes = {error.code for error in base.ProviderError.__subclasses__()}
    assert len(codes) >= 6
    assert not [code for code in codes if f"failure.{code}" not in text("en")]
