"""The waiting page's script in Chromium, against a proxy that a test plays."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import flask
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from werkzeug.serving import make_server

from tests.support.waiting import until
from tests.unit.proxy.control.page_parts import (
    BLOCK,
    FAILURE,
    PROGRESS,
    PROXY,
    STATUSES,
    status,
    waiting,
)

pytestmark = pytest.mark.browser

expect.set_options(timeout=20_000)  # of milliseconds: seven pages on a busy machine

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)


def page_app() -> flask.Flask:
    app = flask.Flask(
        "pages", root_path=str(PROXY), static_folder="static", static_url_path="/_qwenctl/static"
    )
    app.after_request(_with_csp)
    return app


def _with_csp(response: flask.Response) -> flask.Response:
    response.headers["Content-Security-Policy"] = CSP
    return response


class Backend:
    """A proxy with the routes that the waiting page uses, whose status the test sets."""

    def __init__(self) -> None:
        self.status = status()
        self.opens = True  # whether the WebUI is there once the status says ready
        self.stream = True
        self.wake_answer: Callable[[], Any] = self.accept
        self.status_code = 200
        self.wakes: list[dict[str, Any]] = []
        self.may_give_up = False
        self.others_need_it = False
        self.given_up = 0
        self.polls = 0
        self.streams = 0  # open now
        self.visits = 0
        self.changed = threading.Condition()
        self.closing = False
        self.app = page_app()
        self.app.add_url_rule("/_qwenctl/api/wake", "wake", self.wake, methods=["POST"])
        self.app.add_url_rule("/_qwenctl/wake", "form", self.form, methods=["POST"])
        self.app.add_url_rule("/_qwenctl/api/give-up", "give up", self.give_up, methods=["POST"])
        self.app.add_url_rule("/_qwenctl/api/status", "status", self.poll)
        self.app.add_url_rule("/_qwenctl/api/events", "events", self.events)
        self.app.add_url_rule("/_qwenctl/login", "login", lambda: "<h1>Login</h1>")
        self.app.add_url_rule("/", "page", self.page)
        self.app.add_url_rule("/_qwenctl/", "own", lambda: self.waiting("/?a=1&b=2"))

    def set(self, fresh: dict[str, Any]) -> None:
        with self.changed:
            self.status = fresh
            self.changed.notify_all()

    def wait_for_streams(self, number: int) -> None:
        """Wait until so many are open; a closed stream is noticed with its next piece."""
        until(lambda: self.streams == number, 20.0, "one stream")

    def accept(self) -> Any:
        self.set(status("starting", "start"))
        return self.status, 202

    def page(self) -> Any:
        self.visits += 1
        if self.status["phase"] == "ready" and self.opens:
            return "<h1>WebUI</h1>"
        return self.waiting(flask.request.full_path), 503

    def waiting(self, next_url: str) -> str:
        return waiting(self.status, next_url=next_url, may_give_up=self.may_give_up)

    def wake(self) -> Any:
        self.wakes.append({**flask.request.args, **flask.request.headers})
        return self.wake_answer()

    def give_up(self) -> Any:
        self.given_up += 1
        if not self.others_need_it:
            self.set(status("stopping"))
        return self.status

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
            with self.changed:
                self.streams += 1
            try:
                yield from statuses()
            finally:
                with self.changed:
                    self.streams -= 1

        def statuses() -> Iterator[str]:
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


def test_the_pages_own_address_leads_to_the_webui(backend: Backend, url: str, tab: Page) -> None:
    tab.goto(f"{url}/_qwenctl/")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")
    assert tab.url == f"{url}/?a=1&b=2"


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


def test_the_button_wakes(backend: Backend, url: str, tab: Page) -> None:
    backend.status = status(wake_on="click")
    tab.goto(url)
    tab.get_by_role("button", name="Wake the GPU").press("Enter")
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    expect(tab.locator("h1")).to_be_focused()  # the focus does not get lost with the button
    assert len(backend.wakes) == 1


def test_who_does_not_need_it_any_more_lets_it_sleep(
    backend: Backend, url: str, visitor: BrowserContext
) -> None:
    backend.may_give_up = True
    pages = [visitor.new_page() for _ in range(3)]
    for page in pages:
        page.goto(url)
        expect(page.locator("h1")).to_have_text("Starting the GPU instance")
    pages[0].get_by_role("button", name="I do not need it any more").click()
    for page in pages:
        expect(page.locator("h1")).to_have_text("The GPU is falling asleep")
    backend.set(status())
    for page in pages:  # none of them takes its own visit for a new demand
        expect(page.locator("h1")).to_have_text("The GPU is asleep")
        expect(page.locator("#give-up")).to_be_hidden()
    pages[1].wait_for_timeout(500)
    assert (backend.given_up, len(backend.wakes)) == (1, 1)
    pages[1].get_by_role("button", name="Wake the GPU").click()
    for page in pages:
        expect(page.locator("h1")).to_have_text("Starting the GPU instance")
    assert "now" not in backend.wakes[1]
    backend.set(status("ready", "ready"))
    for page in pages:
        expect(page.locator("h1")).to_have_text("WebUI")


def test_a_gpu_that_others_need_opens_no_page_of_who_gave_up(
    backend: Backend, url: str, tab: Page
) -> None:
    backend.may_give_up = backend.others_need_it = True
    tab.goto(url)
    tab.get_by_role("button", name="I do not need it any more").click()
    expect(tab.locator("#lead")).to_contain_text("Others still need the GPU")
    expect(tab.get_by_role("button", name="I need it after all")).to_be_visible()
    backend.set(status("ready", "ready"))
    tab.get_by_role("button", name="Open the page").click()
    expect(tab.locator("h1")).to_have_text("WebUI")


def test_try_now(backend: Backend, url: str, tab: Page) -> None:
    backend.status = status("failed", failure=FAILURE, wanted=True)
    tab.goto(url)
    tab.get_by_role("button", name="Try now").click()
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    assert [wake["now"] for wake in backend.wakes] == ["1"]


def test_without_the_stream_the_page_polls(backend: Backend, url: str, tab: Page) -> None:
    backend.stream = False
    tab.goto(url)
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")
    assert 1 <= backend.polls <= 5


def test_seven_pages_of_a_browser_share_a_stream(
    backend: Backend, url: str, visitor: BrowserContext
) -> None:
    """A browser has six connections to a host over HTTP/1.1; a stream each would use them up."""
    pages = [visitor.new_page() for _ in range(7)]
    for page in pages:
        page.goto(url)
    for page in pages:
        expect(page.locator("h1")).to_have_text("Starting the GPU instance")
    backend.set(status("loading", "load", progress=PROGRESS))
    for page in pages:
        expect(page.locator("#node-text")).to_have_text("shard 4 of 10")
    backend.wait_for_streams(1)
    pages.pop(0).close()  # most likely the page with the stream: another takes over
    backend.set(status("booting", "boot"))
    for page in pages:
        expect(page.locator("h1")).to_have_text("The machine is booting")
    backend.wait_for_streams(1)
    backend.set(status("ready", "ready"))
    for page in pages:
        expect(page.locator("h1")).to_have_text("WebUI")


def test_a_page_that_shares_a_stream_keeps_its_own_demand(
    backend: Backend, url: str, visitor: BrowserContext
) -> None:
    backend.status = status("booting", "boot")
    first, second = visitor.new_page(), visitor.new_page()
    asked: list[str] = []
    second.on("request", lambda request: asked.append(request.url))
    for page in (first, second):
        page.clock.install()
        page.goto(url)
        page.wait_for_timeout(500)
    for _ in range(48):
        for page in (first, second):
            page.clock.run_for(500)
    backend.wait_for_streams(1)
    assert not [one for one in asked if "/api/events" in one]
    polls = [one for one in asked if "/api/status" in one]
    assert 2 <= len(polls) <= 5  # 24 s and the time of the test itself, each 10 s
    assert all(one.endswith("&visible=1") for one in polls)


@pytest.mark.parametrize(
    "channel",
    ["undefined", "class { constructor() { throw new DOMException('', 'SecurityError'); } }"],
)
def test_a_page_that_reaches_no_other_has_its_own_stream(
    backend: Backend, url: str, tab: Page, channel: str
) -> None:
    tab.add_init_script(f"window.BroadcastChannel = {channel}")
    tab.goto(url)
    expect(tab.locator("h1")).to_have_text("Starting the GPU instance")
    backend.wait_for_streams(1)
    backend.set(status("ready", "ready"))
    expect(tab.locator("h1")).to_have_text("WebUI")


def test_a_page_of_another_gpu_polls(backend: Backend, url: str, visitor: BrowserContext) -> None:
    backend.status = status("booting", "boot")
    first = visitor.new_page()
    first.goto(url)
    first.wait_for_timeout(500)
    other = visitor.new_page()
    other.route(f"{url}/", lambda route: route.fulfill(body=waiting(backend.status, gpu="other")))
    other.goto(url)
    expect(other.locator("h1")).to_have_text("The machine is booting")
    backend.set(status("loading", "load"))
    expect(other.locator("h1")).to_have_text("Loading the model")
    backend.wait_for_streams(1)


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


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (403, "You may not do that here."),
        (409, "Your wait cannot be told from that of others"),
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


def test_a_visitor_who_is_signed_out_goes_to_the_login(
    backend: Backend, url: str, tab: Page
) -> None:
    backend.wake_answer = lambda: ("", 401)
    tab.goto(f"{url}/?a=1&b=2")
    expect(tab.locator("h1")).to_have_text("Login")
    assert parse_qs(urlsplit(tab.url).query) == {"next": ["/?a=1&b=2"]}


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
