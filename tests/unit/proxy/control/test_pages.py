"""The pages that people see: texts, templates, and the waiting page's script in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

import flask
import pytest
from jinja2 import StrictUndefined
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from werkzeug.serving import make_server

from proxy.control.i18n import negotiate, text
from proxy.control.pages import environment
from qwenctl.clouds import base
from qwenctl.core.lifecycle import Phase
from tests.support.paths import ROOT

PROXY = ROOT / "proxy"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)
LANGUAGES = ("en", "zh")
STEPS = ("request", "start", "boot", "load", "ready")


def status(phase: str = "off", active: str | None = None, **changes: Any) -> dict[str, Any]:
    """A status as /_qwenctl/api/status gives it: the steps before ``active`` are done."""
    at = STEPS.index(active) if active else 0
    steps = [
        {
            "key": key,
            "state": "active" if key == active else "done" if index < at else "todo",
            "seconds": 3.2 if index < at or key == active else None,
            "expected": None if key == "request" else 5.0,
        }
        for index, key in enumerate(STEPS)
    ]
    return {
        "gpu": "main",
        "phase": phase,
        "wanted": active is not None,
        "steps": steps,
        "elapsed_seconds": 12.0 if active else None,
        "eta_seconds": 23.0 if active else None,
        "progress": None,
        "failure": None,
        "interruption": None,
        "note": "",
        "blocked": None,
        "wake_on": "visit",
        "may_wake": True,
        **changes,
    }


PROGRESS = {"phase": "weights", "percent": 40.0, "eta": 75.0, "text": "shard 4 of 10"}
FAILURE = {"code": "no_capacity", "message": "sold out", "attempts": 2, "retry_in_seconds": 18.0}
INTERRUPTION = {"action": "stop", "seconds_left": 100.0}
BLOCK = {"kind": "maintenance", "by": "ada", "reason": "new driver", "seconds_left": 5400.0}

STATUSES = {
    "off": status(),
    "off, wanted": status(wanted=True, active="request"),
    "off, click": status(wake_on="click"),
    "off, never": status(wake_on="never"),
    "off, no access": status(may_wake=False),
    "off, no steps": status(steps=[]),
    "off, blocked": status(blocked=BLOCK),
    "off, blocked without end": status(
        blocked={"kind": "odd", "by": None, "reason": None, "seconds_left": None}
    ),
    "starting": status("starting", "start"),
    "starting, retry": status("starting", "start", failure=FAILURE, eta_seconds=None),
    "booting": status("booting", "boot"),
    "starting, another machine": status(
        "starting", "start", note="zone-b was started instead of spot: no stock <b>"
    ),
    "loading": status("loading", "load", progress=PROGRESS),
    "loading, no percent": status(
        "loading",
        "load",
        progress={"phase": "", "percent": None, "eta": None, "text": ""},
        eta_seconds=0.0,
    ),
    "ready": status("ready", "ready"),
    "draining": status("draining"),
    "stopping": status("stopping"),
    "stopping, wanted": status("stopping", wanted=True),
    "interrupted": status("draining", interruption=INTERRUPTION),
    "interrupted, wanted": status(
        "draining", "request", interruption=INTERRUPTION, wanted=True, elapsed_seconds=3.0
    ),
    "failed": status("failed", failure={**FAILURE, "code": "new", "retry_in_seconds": None}),
    "failed, wanted": status("failed", failure=FAILURE, wanted=True),
}


TEMPLATES = environment(StrictUndefined)


def page_app() -> flask.Flask:
    app = flask.Flask(
        "pages", root_path=str(PROXY), static_folder="static", static_url_path="/_qwenctl/static"
    )
    app.after_request(_with_csp)
    return app


def _with_csp(response: flask.Response) -> flask.Response:
    response.headers["Content-Security-Policy"] = CSP
    return response


def render(template: str, lang: str = "en", **variables: Any) -> str:
    return TEMPLATES.get_template(template).render(lang=lang, t=text(lang), **variables)


def waiting(given: dict[str, Any], lang: str = "en", gpu: str = "main", next_url: str = "/") -> str:
    return render("waiting.html", lang, gpu=gpu, status=given, next_url=next_url)


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


# ---- texts --------------------------------------------------------------------------------------


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


# ---- templates ------------------------------------------------------------------------------------


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
    assert forms == {*asleep, "interrupted"}
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


# ---- the script, in Chromium ------------------------------------------------------------------------


class Backend:
    """A proxy with the routes that the waiting page uses, whose status the test sets."""

    def __init__(self) -> None:
        self.status = status()
        self.opens = True  # whether the WebUI is there once the status says ready
        self.stream = True
        self.wake_answer: Callable[[], Any] = self.accept
        self.status_code = 200
        self.wakes: list[dict[str, Any]] = []
        self.polls = 0
        self.visits = 0
        self.changed = threading.Condition()
        self.closing = False
        self.app = page_app()
        self.app.add_url_rule("/_qwenctl/api/wake", "wake", self.wake, methods=["POST"])
        self.app.add_url_rule("/_qwenctl/wake", "form", self.form, methods=["POST"])
        self.app.add_url_rule("/_qwenctl/api/status", "status", self.poll)
        self.app.add_url_rule("/_qwenctl/api/events", "events", self.events)
        self.app.add_url_rule("/_qwenctl/login", "login", lambda: "<h1>Login</h1>")
        self.app.add_url_rule("/", "page", self.page)
        self.app.add_url_rule("/_qwenctl/", "own", lambda: self.waiting("/?a=1&b=2"))

    def set(self, fresh: dict[str, Any]) -> None:
        with self.changed:
            self.status = fresh
            self.changed.notify_all()

    def accept(self) -> Any:
        self.set(status("starting", "start"))
        return self.status, 202

    def page(self) -> Any:
        self.visits += 1
        if self.status["phase"] == "ready" and self.opens:
            return "<h1>WebUI</h1>"
        return self.waiting(flask.request.full_path), 503

    def waiting(self, next_url: str) -> str:
        return waiting(self.status, next_url=next_url)

    def wake(self) -> Any:
        self.wakes.append({"gpu": flask.request.args["gpu"], **flask.request.headers})
        return self.wake_answer()

    def form(self) -> Any:
        self.wakes.append({**flask.request.args, **flask.request.form})
        self.accept()
        return flask.redirect("/", 303)

    def poll(self) -> Any:
        self.polls += 1
        return self.status, self.status_code

    def events(self) -> Any:
        if not self.stream:
            flask.abort(404)

        def lines() -> Iterator[str]:
            sent: object = None
            while not self.closing:
                with self.changed:
                    if self.status is sent:
                        self.changed.wait(0.5)
                    fresh = self.status
                if fresh is not sent:
                    yield f"event: status\ndata: {json.dumps(fresh)}\n\n"
                    sent = fresh
                else:
                    yield ": still here\n\n"

        return flask.Response(lines(), mimetype="text/event-stream")


@pytest.fixture
def backend() -> Backend:
    return Backend()


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, backend.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        with backend.changed:
            backend.closing = True
            backend.changed.notify_all()
        server.shutdown()
        thread.join(10)


@pytest.fixture
def url(backend: Backend) -> Iterator[str]:
    with served(backend) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    arguments = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[f"--{argument}" for argument in arguments.split()],
        )
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(locale="en-GB")
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def tab(visitor: BrowserContext) -> Iterator[Page]:
    """A tab in which any script error or breach of the content policy fails the test."""
    page = visitor.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    yield page
    assert problems == []


browser = pytest.mark.browser


@browser
def test_a_visit_wakes_once_and_the_page_opens_by_itself(
    backend: Backend, url: str, tab: Page
) -> None:
    tab.goto(f"{url}/?q=1#part")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("loading", "load", progress=PROGRESS))
    expect(tab.locator("#node-text")).to_have_text("shard 4 of 10")
    expect(tab.locator("#node-percent")).to_have_text("40\u00a0%")
    expect(tab.locator("#node-eta")).to_have_text(re.compile(r"^about \d.* left$"))
    expect(tab.locator('li[data-key="load"]')).to_have_attribute("data-state", "active")
    assert re.match(r"\d+% · Loading the model · main", tab.title())
    backend.set(status("off"))  # and gone again: this visit has had its wake
    expect(tab.get_by_role("button", name="Wake the GPU")).to_be_visible()
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")
    assert tab.url == f"{url}/?q=1#part"
    assert len(backend.wakes) == 1
    assert backend.wakes[0]["gpu"] == "main"
    assert backend.wakes[0]["X-Qwenctl-Wake"] == "1"
    assert backend.polls == 0


@browser
def test_the_pages_own_address_leads_to_the_webui(backend: Backend, url: str, tab: Page) -> None:
    tab.goto(f"{url}/_qwenctl/")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")
    assert tab.url == f"{url}/?a=1&b=2"


@browser
def test_a_page_that_nobody_sees_does_not_wake(
    backend: Backend, url: str, visitor: BrowserContext, tab: Page
) -> None:
    visitor.add_init_script(
        "window.seen = 'hidden'; window.pre = true;"
        "Object.defineProperty(document, 'visibilityState', {get: () => window.seen});"
        "Object.defineProperty(document, 'hidden', {get: () => window.seen === 'hidden'});"
        "Object.defineProperty(document, 'prerendering', {get: () => window.pre});"
    )
    tab.goto(url)
    tab.wait_for_timeout(800)
    assert backend.polls == 1  # it follows, by polling
    tab.evaluate("pre = false; document.dispatchEvent(new Event('prerenderingchange'))")
    tab.wait_for_timeout(300)
    assert backend.wakes == []  # a background tab
    tab.evaluate("pre = true; seen = 'visible'")
    tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    tab.wait_for_timeout(500)
    assert backend.wakes == []  # visible, but still prerendering
    tab.evaluate("pre = false; document.dispatchEvent(new Event('prerenderingchange'))")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    assert len(backend.wakes) == 1


@browser
@pytest.mark.parametrize(
    "given",
    [
        status(wake_on="click"),
        status(wake_on="never"),
        status(may_wake=False),
        status(blocked=BLOCK),
        status("booting", "boot"),
        status(wanted=True),
    ],
    ids=["click", "never", "no access", "blocked", "under way", "wanted"],
)
def test_no_wake_where_none_is_due(
    given: dict[str, Any], backend: Backend, url: str, tab: Page
) -> None:
    backend.status = given
    tab.goto(url)
    tab.wait_for_timeout(700)
    assert backend.wakes == []
    assert tab.get_by_role("button").count() == (1 if given["wake_on"] == "click" else 0)


@browser
def test_the_button_wakes(backend: Backend, url: str, tab: Page) -> None:
    backend.status = status(wake_on="click")
    tab.goto(url)
    tab.get_by_role("button", name="Wake the GPU").press("Enter")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    expect(tab.locator("h1")).to_be_focused()  # the focus does not get lost with the button
    assert len(backend.wakes) == 1


@browser
def test_without_the_stream_the_page_polls(backend: Backend, url: str, tab: Page) -> None:
    backend.stream = False
    tab.goto(url)
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")
    assert 1 <= backend.polls <= 5


@browser
def test_a_page_that_never_opens_is_not_reloaded_for_ever(
    backend: Backend, url: str, tab: Page
) -> None:
    backend.status = status("ready", "ready")
    backend.opens = False
    tab.goto(url)
    button = tab.get_by_role("button", name="Open the page")
    expect(button).to_be_visible()
    tab.wait_for_timeout(500)
    assert backend.visits == 4  # the visit and three reloads
    backend.opens = True
    button.click()
    expect(tab.locator("h1")).to_have_text("WebUI")


@browser
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (403, "You may not do that here."),
        (409, "The GPU is blocked."),
        (423, "The GPU is blocked."),
        (429, "Too many requests. Try again in 7\u00a0s."),
        (500, "The server answered with an error (500)."),
        (503, "The server cannot do that right now."),
    ],
)
def test_a_refused_wake_is_explained(
    code: int, sentence: str, backend: Backend, url: str, tab: Page
) -> None:
    def refuse() -> Any:
        problem = json.dumps({"title": "no", "detail": "because of the moon", "status": code})
        headers = {"Content-Type": "application/problem+json", "Retry-After": "7"}
        return flask.Response(problem, code, headers)

    backend.wake_answer = refuse
    tab.goto(url)
    expect(tab.get_by_role("alert")).to_contain_text(sentence)
    expect(tab.locator("#notice-detail")).to_have_text("because of the moon")
    tab.wait_for_timeout(400)
    expect(tab.get_by_role("alert")).to_be_visible()  # fresh status does not wipe it away
    assert len(backend.wakes) == 1
    backend.wake_answer = backend.accept
    tab.get_by_role("button", name="Wake the GPU").click()
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    expect(tab.get_by_role("alert")).to_be_hidden()


@browser
def test_a_visitor_who_is_signed_out_goes_to_the_login(
    backend: Backend, url: str, tab: Page
) -> None:
    backend.wake_answer = lambda: ("", 401)
    tab.goto(f"{url}/?a=1&b=2")
    expect(tab.locator("h1")).to_have_text("Login")
    assert parse_qs(urlsplit(tab.url).query) == {"next": ["/?a=1&b=2"]}


@browser
def test_a_lost_connection_is_said_and_found_again(backend: Backend, tab: Page) -> None:
    backend.status = status("booting", "boot")
    with served(backend) as url:
        tab.goto(url)
        expect(tab.locator("h1")).to_have_text("The machine is booting")
        tab.context.set_offline(True)
        backend.closing = True  # ends the stream
        expect(tab.get_by_role("alert")).to_contain_text("No connection")
        backend.closing = False
        tab.context.set_offline(False)
        expect(tab.get_by_role("alert")).to_be_hidden()
        backend.set(status("ready", "ready"))
        expect(tab.locator("h1")).to_have_text("WebUI")


@browser
def test_late_news_and_failures_read_well(backend: Backend, url: str, tab: Page) -> None:
    backend.status = status("failed", failure=FAILURE, wanted=True)
    tab.goto(url)
    box = tab.locator("#failure")
    expect(box).to_contain_text("no such machine free")
    expect(box).to_contain_text(re.compile(r"in 1[67]\ss"))  # counts down by itself
    backend.set(status(blocked={**BLOCK, "kind": "budget"}))
    expect(tab.locator("#blocked")).to_contain_text("Its budget is used up.")
    expect(tab.locator("#blocked")).to_contain_text("for another 1\u00a0h\u00a030\u00a0min")
    expect(box).to_be_hidden()


@browser
def test_without_script_a_form_wakes(backend: Backend, url: str, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{url}/?a=1&b=2")
    assert page.locator('meta[http-equiv="refresh"]').get_attribute("content") == "5"
    page.get_by_role("button", name="Wake the GPU").click()
    expect(page.locator("h1")).to_have_text("Starting the GPU instance")
    expect(page.locator('li[data-key="start"]')).to_have_attribute("data-state", "active")
    context.close()
    assert backend.wakes == [{"gpu": "main", "next": "/?a=1&b=2"}]


@browser
def test_server_and_script_draw_the_same_page(
    backend: Backend, url: str, tab: Page, chromium: Browser
) -> None:
    """Otherwise the page would jump when the script starts."""
    context = chromium.new_context(java_script_enabled=False)
    plain = context.new_page()
    ids = ("headline", "lead", "usual", "eta", "earlier", "failure", "hint", "steps", "stay")
    ticking = r"\d+(\.\d)?\ss\b"

    def seen(page: Page) -> dict[str, str]:
        parts = {id_: page.locator(f"#{id_}") for id_ in ids}
        return {
            id_: re.sub(ticking, "…", part.inner_text()) if part.is_visible() else "hidden"
            for id_, part in parts.items()
        }

    for name, given in STATUSES.items():
        if given["phase"] == "ready":
            continue  # the script opens it at once
        wake_on = given["wake_on"].replace("visit", "click")  # no wake under way
        backend.status = given | {"wake_on": wake_on}
        plain.goto(url)
        tab.goto(url)
        expect(tab.locator("main:not([data-level])")).to_be_visible()  # the script has drawn
        assert seen(tab) == seen(plain), name
    context.close()
