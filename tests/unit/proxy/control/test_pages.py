"""The templates of the pages that people see."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from proxy.control.i18n import text
from qwenctl.core.phase import Phase
from tests.unit.proxy.control.page_parts import (
    BLOCK,
    FAILURE,
    LANGUAGES,
    PROGRESS,
    PROXY,
    STATUSES,
    render,
    status,
    waiting,
)


class Document(HTMLParser):
    """What is wrong with a page's HTML, and the parts the tests look at."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._seen: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]
        ids = [a["id"] for _, a in self.tags if "id" in a]
        self.problems += [f"id {i} twice" for i in set(ids) if ids.count(i) > 1]
        self.problems += [
            f"{a['for']}: label of nothing"
            for _, a in self.tags
            if "for" in a and a["for"] not in ids
        ]
        if not html.startswith("<!doctype html>\n<html lang="):
            self.problems.append("no doctype and language at the start")
        if sum(tag == "h1" for tag, _ in self.tags) != 1:
            self.problems.append("not exactly one h1")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if len(attributes) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if tag == "style" or (
            tag == "script"
            and "src" not in attributes
            and attributes.get("type") != "application/json"
        ):
            self.problems.append(f"inline <{tag}>")
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.problems.append(f"inline {name}= on <{tag}>")
            outside = name in ("src", "href", "action") and not (value or "").startswith(("/", "#"))
            if outside:
                self.problems.append(f"{name}={value} leaves the site")
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> inside {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.data = data

    def hidden(self, id_: str) -> bool:
        return next("hidden" in a for _, a in self.tags if a.get("id") == id_)


def test_all_phases_are_tried() -> None:
    assert {given["phase"] for given in STATUSES.values()} == {phase.value for phase in Phase}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", STATUSES)
def test_the_waiting_page_is_good_html(name: str, lang: str) -> None:
    given = STATUSES[name]
    html = waiting(given, lang)
    document = Document(html)
    assert document.problems == []
    assert f'lang="{text(lang)["html_lang"]}"' in html
    config = json.loads(document.data)
    assert config["status"] == given
    assert config["text"] == dict(text(lang))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_other_pages_are_good_html(lang: str) -> None:
    t = text(lang)
    login: dict[str, Any] = {"next_url": "/?a=1&b"}
    pages = [
        render("login.html", lang, **login, error="", retry_after=None),
        render("login.html", lang, **login, error=t["login.wrong"], retry_after=None),
        render("login.html", lang, **login, error="", retry_after=40),
        render("message.html", lang, title="T", text="X"),
        render(
            "message.html", lang, title="T", text="X", detail="D", link={"url": "/", "label": "L"}
        ),
    ]
    assert [Document(page).problems for page in pages] == [[]] * len(pages)
    assert t["login.wrong"] in pages[1]
    assert t["login.throttled"].partition("{")[0] in pages[2]


def test_what_others_wrote_stays_text() -> None:
    evil = "</script><img src=x onerror=alert(1)>'\"&"
    given = status(
        "failed",
        wanted=True,
        failure={**FAILURE, "code": evil, "message": evil},
        blocked=None,
        progress={"phase": evil, "percent": 1.0, "text": evil},
    )
    pages = [
        waiting(given, gpu=evil, next_url=evil),
        waiting(status(blocked={**BLOCK, "by": evil, "reason": evil, "kind": evil})),
        waiting(status("loading", "load", progress={"phase": evil, "percent": 1.0, "text": evil})),
        render("login.html", next_url=evil, error=evil, retry_after=None),
        render("message.html", title=evil, text=evil, detail=evil),
    ]
    for page in pages:
        assert "<img" not in page
        assert Document(page).problems == []


def test_each_state_shows_its_parts_without_script() -> None:
    parts = ("progress", "steps", "failure", "blocked", "hint", "node", "earlier", "usual")

    def shown(name: str) -> set[str]:
        document = Document(waiting(STATUSES[name]))
        return {part for part in parts if not document.hidden(part)}

    assert shown("off") == shown("off, click") == {"usual"}
    assert shown("off, never") == shown("off, no access") == {"hint"}
    assert shown("off, blocked") == {"blocked"}
    assert shown("starting") == {"progress", "steps"}
    assert shown("starting, retry") == {"progress", "steps", "earlier"}
    assert shown("loading") == {"progress", "steps", "node"}
    assert shown("failed, wanted") == {"failure", "steps"}
    assert shown("interrupted, wanted") == {"progress", "steps"}
    assert text("en")["headline.interrupted"] in waiting(STATUSES["interrupted, wanted"])

    forms = {name for name in STATUSES if "<form" in waiting(STATUSES[name])}
    asleep = {"off", "off, click", "off, no steps", "draining", "stopping", "failed"}
    assert forms == {*asleep, "interrupted", "failed, wanted"}
    assert text("en")["failure.other"] in waiting(STATUSES["failed"])


def test_what_keeps_a_service_from_starting_stands_in_the_place_of_its_progress() -> None:
    troubled = status("loading", "load", progress=PROGRESS, problem="webui: <Docker> is not there")
    page = waiting(troubled)
    shown = page.partition("<script type=")[0]  # the same as JSON follows, for the script
    assert "webui: &lt;Docker&gt; is not there" in shown
    assert PROGRESS["text"] not in shown
    assert PROGRESS["text"] in waiting(STATUSES["loading"])


def test_words_for_durations() -> None:
    def eta(seconds: float) -> str:
        page = waiting(status("booting", "boot", eta_seconds=seconds)).replace("\xa0", " ")
        found = re.search(r'id="eta">(.*?)</span>', page)
        assert found
        return found[1]

    assert eta(0.0) == "longer than usual…"
    assert eta(1.0) == "any moment now"
    assert eta(7.2) == "about 8 s left"
    assert eta(31.0) == "about 35 s left"
    assert eta(200.0) == "about 3 min left"
    assert eta(3590.0) == "about 1 h left"
    assert eta(7500.0) == "about 2 h 5 min left"
    assert eta(3 * 86400.0) == "about 3 d left"


def test_text_can_be_read_on_its_background() -> None:
    """WCAG AA: 4.5 to 1 for text, in both colour schemes."""
    css = (PROXY / "static" / "style.css").read_text(encoding="utf-8")
    roots = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(roots) == 2

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(ink, "card") for ink in ("ink", "soft", "faint", "bad")]
    pairs += [(ink, back) for ink in ("ink", "soft", "faint") for back in ("bad-back", "calm-back")]
    pairs += [("bad", "bad-back"), ("on-accent", "accent"), ("on-accent", "accent-hover")]
    for root in roots:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", root))
        for ink, back in pairs:
            light, dark = sorted((luminance(colours[ink]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, back, colours[ink])


def shown(given: dict[str, Any], lang: str = "en", **visitor: bool) -> str:
    """The page without the JSON for its script."""
    return waiting(given, lang, **visitor).partition("<script type=")[0]


def test_the_page_promises_no_more_than_is_known() -> None:
    t = text("en")
    assert t["eta.moment"] in shown(STATUSES["loading, nearly"])
    early = shown(STATUSES["loading, not nearly"])  # the node says 40 %
    assert t["eta.moment"] not in early
    assert "about 2\xa0s left" in early
    crashing = shown(STATUSES["loading, troubled"])
    assert t["headline.troubled"] in crashing
    assert t["eta.none"] in crashing
    assert t["eta.moment"] not in crashing
    assert "value=" not in crashing[crashing.index('id="bar"') : crashing.index('id="eta"')]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_account_name_is_shown_for_a_block(lang: str) -> None:
    page = shown(status(blocked={**BLOCK, "by": "root-at-vm7"}, after_block="stays"), lang)
    assert "root-at-vm7" not in page
    assert text(lang)["block.admin"] in page
    assert text(lang)["block.stays"] in page
    hours = shown(STATUSES["off, blocked by hours"], lang)
    assert "nights" in hours
    assert text(lang)["block.restarts"] in hours


def test_who_waits_may_try_now_and_give_up() -> None:
    t = text("en")
    retrying = shown(STATUSES["failed, wanted"])
    assert t["wake.now"] in retrying
    assert "now=1" in retrying
    slow = status("failed", failure={**FAILURE, "code": "throttled"}, wanted=True)
    assert t["wake.now"] not in shown(slow)
    soon = status("failed", failure={**FAILURE, "retry_in_seconds": 1.0}, wanted=True)
    assert t["wake.now"] not in shown(soon)
    assert t["wake.now"] not in shown({**STATUSES["failed, wanted"], "may_wake": False})
    for name, given in STATUSES.items():
        document = Document(waiting(given, may_give_up=True, signed_in=True))
        assert document.problems == []
        waits = given["wanted"] and name not in ("ready", "off, blocked")
        assert document.hidden("give-up") is not waits, name
    assert 'id="give-up"' not in shown(STATUSES["starting"])
