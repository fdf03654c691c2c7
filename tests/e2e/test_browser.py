"""The whole product as people see it: Chromium, a proxy process, and a real Gradio app behind it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qwenctl.core.phase import Phase
from tests.e2e.browsing import ARGUMENTS, QWENCTL, Tab, address, outcomes, qwenctl, sample_webui
from tests.support.deployment import Deployment
from tests.support.net import free_ports

if TYPE_CHECKING:
    from playwright.sync_api import Page

# One proxy serves the whole module, so its tests belong on one worker.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

OpenTab = Callable[..., Tab]

IDLE, DRAIN = 4, 3


def odd_webui() -> dict[str, Any]:
    """Changes to `gpu_table` for a GPU that runs the WebUI that breaks at each visit."""
    port = free_ports(1)[0]
    command = [sys.executable, str(Path(__file__).with_name("odd_webui.py")), str(port)]
    readiness = {"path": "/healthy", "interval": 0.2}
    service = {"command": command, "port": port, "max_restarts": 20, "readiness": readiness}
    return {"service": service, "idle_timeout": 20}


GPUS = {
    "main": sample_webui(idle_timeout=IDLE, timing={"drain": DRAIN, "heartbeat": 0.5}),
    "hidden": {},
    "prefetch": odd_webui(),
    "noscript": {},
    "click": {"wake_on": "click"},
    "never": {"wake_on": "never"},
    "full": {"local": {"fail": "no_capacity"}, "timing": {"drain": 3, "retry": 3}},
    "blocked": {},
    "query": {},
    "seven": {},
    "flapping": odd_webui(),
}
"""One GPU for each test that wakes one; all but `main` run a small WebUI that starts quickly."""


@pytest.fixture(scope="module")
def product(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    gpus = {name: {"hosts": [f"{name}.localhost"], **gpu} for name, gpu in GPUS.items()}
    gpus["main"]["hosts"] = []
    # Long enough that the page is seen waiting, short enough that nobody waits for the test.
    for name in ("hidden", "noscript", "click", "blocked", "query"):
        gpus[name]["local"] = {"boot_seconds": 1, "stop_seconds": 0.2}
    gpus["seven"]["local"] = {"boot_seconds": 8, "stop_seconds": 0.2}  # seven pages load meanwhile
    deployment = Deployment(tmp_path_factory.mktemp("browser"), name="browser", gpus=gpus)
    try:
        yield deployment.start()
    finally:
        deployment.close()


def starts(product: Deployment, gpu: str) -> int:
    return len(product.instance(gpu).starts)


def headline(page: Page) -> str:
    return page.locator("#headline").inner_text()


def say(page: Page, text: str) -> None:
    """Type a message into Gradio's chat and send it."""
    page.locator("textarea").first.fill(text)
    page.locator("textarea").first.press("Enter")


# What the waiting page does while it waits: the steps as they change, from the page itself.
WATCH_STEPS = """
new MutationObserver((changes) => {
  for (const { target } of changes)
    if (target.dataset.key) console.debug(`step ${target.dataset.key} ${target.dataset.state}`);
}).observe(document, { subtree: true, attributeFilter: ["data-state"] });
"""


def test_a_visit_wakes_and_turns_into_the_webui(
    product: Deployment, open_tab: OpenTab, picture: Path
) -> None:
    tab = open_tab()
    page = tab.page
    steps: list[str] = []
    page.on("console", lambda m: steps.append(m.text) if m.text.startswith("step ") else None)
    page.add_init_script(WATCH_STEPS)
    before = starts(product, "main")

    answer = page.goto(address(product, "main"))
    assert answer is not None
    assert answer.status == 503
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["retry-after"]) > 0
    page.get_by_text("loading weights").wait_for()
    assert re.match(r"\d+% · Loading the model · main", page.title())
    page.locator("textarea").first.wait_for()  # nobody has touched the page

    assert page.url == address(product, "main")
    assert tab.navigations == [address(product, "main")] * 2, "the waiting page, then the WebUI"
    assert len(tab.wakes) == 1
    assert starts(product, "main") == before + 1
    seen = [step for step in steps if step.endswith("active")]
    assert seen.index("step start active") < seen.index("step load active")
    for step in ("request", "start", "boot"):
        assert f"step {step} done" in steps

    with page.expect_response("**/upload*") as uploaded:
        page.locator("input[type=file]").first.set_input_files(picture)
    assert uploaded.value.status == 200
    say(page, "What is this?")
    answer_text = page.get_by_test_id("bot").last
    page.get_by_text("The picture is").wait_for()
    lengths = set()
    while page.locator(".stop-button").is_visible():
        lengths.add(len(answer_text.inner_text()))
        page.wait_for_timeout(100)
    assert len(lengths) >= 5, f"the answer did not grow word by word: {sorted(lengths)}"
    assert "90 × 60 pixels" in answer_text.inner_text()
    assert "blue" in answer_text.inner_text()


def test_a_tab_left_open_over_a_sleep(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    ended: list[tuple[str, float]] = []
    for how in ("requestfinished", "requestfailed"):
        page.on(how, lambda request: ended.append((request.url, time.time())))
    with page.expect_request("**/heartbeat/*"):
        page.goto(address(product, "main"))
    page.locator("textarea").first.wait_for()

    # Nobody types: the open heartbeat is no use, and the GPU goes off.
    opened = time.monotonic()
    while product.store.snapshot("main").phase is not Phase.OFF:
        assert time.monotonic() - opened < IDLE + DRAIN + 6, product.history()
        page.wait_for_timeout(100)
    instance = product.instance("main")
    lost = [at for url, at in ended if "/heartbeat/" in url]
    assert lost, "the heartbeat did not end with the WebUI"
    assert lost[0] >= instance.stops[-1], "the heartbeat was not open until the stop"
    page.wait_for_timeout(2000)
    assert product.store.snapshot("main").phase is Phase.OFF, "what the tab does by itself woke it"

    # The same tab, as if nothing had happened.
    before = starts(product, "main")
    tab.requests.clear()
    say(page, "Good morning")
    page.get_by_test_id("bot").last.get_by_text("I am the sample WebUI").wait_for()
    assert starts(product, "main") == before + 1
    assert product.store.snapshot("main").phase.serves
    posted = [r for r in tab.requests if r.method == "POST" and "/gradio_api/" in r.url]
    assert posted[0].timing["responseStart"] > 2000, "ms: the message was held while it booted"
    for request in posted:
        response = request.response()
        assert response is not None
        assert response.status == 200, f"{request.url}: {response.status}"


SHOWS_WEBUI = "document.body.innerText.includes('\"pid\"')"


class RawBrowser:
    """A Chromium of one's own over its debugging port: Playwright keeps every tab visible."""

    def __init__(self, program: str, profile: Path) -> None:
        command = [program, "--headless=new", "--remote-debugging-port=0", *ARGUMENTS]
        command += [f"--user-data-dir={profile}", "about:blank"]
        self._end = contextlib.ExitStack()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._end.callback(process.wait, 10)
        self._end.callback(process.terminate)
        assert process.stderr
        for line in process.stderr:  # the test's timeout bounds it
            if line.startswith("DevTools listening on "):
                break
        else:
            self._end.close()
            pytest.fail("Chromium did not start")
        self._address = line.split()[-1]
        self._number = 0

    def __enter__(self) -> RawBrowser:
        from websockets.sync.client import connect

        self._socket = self._end.enter_context(connect(self._address, max_size=None))
        return self

    def __call__(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps({**command, **({"sessionId": session} if session else {})}))
        while True:
            message = json.loads(self._socket.recv(timeout=20))
            if message.get("id") == self._number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    return self(method, session, **parameters)  # the page has just gone on
                assert "error" not in message, message
                return dict(message["result"])

    def tab(self, url: str, *, background: bool) -> tuple[str, str]:
        """Open a tab; its target and its session."""
        target = self("Target.createTarget", url=url, background=background)["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return target, session

    def ask(self, session: str, expression: str) -> Any:
        """The value of an expression in that tab."""
        answer = self("Runtime.evaluate", session, expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def wait(self, session: str, expression: str) -> None:
        """Until the expression is true in that tab."""
        deadline = time.monotonic() + 20
        while not self.ask(session, expression):
            assert time.monotonic() < deadline, f"not true in 20 s: {expression}"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._end.close()


def test_a_background_tab_wakes_only_when_it_is_looked_at(
    product: Deployment, chromium: str, tmp_path: Path
) -> None:
    with RawBrowser(chromium, tmp_path / "profile") as browser:
        browser.tab("about:blank", background=False)
        target, session = browser.tab(address(product, "hidden"), background=True)
        browser.wait(session, "document.readyState === 'complete'")
        browser.wait(session, "document.querySelector('main')?.dataset.mode === 'asleep'")
        assert browser.ask(session, "document.visibilityState") == "hidden"
        time.sleep(2)
        assert product.store.snapshot("hidden").leases == ()
        assert starts(product, "hidden") == 0

        browser("Target.activateTarget", targetId=target)
        browser.wait(session, "document.visibilityState === 'visible'")
        product.wait_phase(Phase.READY, gpu="hidden")
        assert starts(product, "hidden") == 1
        browser.wait(session, SHOWS_WEBUI)


def test_prefetching_and_prerendering_wake_nothing(
    product: Deployment, chromium: str, tmp_path: Path
) -> None:
    """A page of the WebUI, left open over a sleep, has links to be prefetched and prerendered."""
    with RawBrowser(chromium, tmp_path / "profile") as browser:
        # Chromium does not prerender for a tab that somebody is debugging, so this one is left alone.
        browser("Target.createTarget", url=address(product, "prefetch", "/links"))
        product.wait_phase(Phase.READY, gpu="prefetch")
        qwenctl(product, "down", "-g", "prefetch", "--now")
        deadline = time.monotonic() + 10
        while not outcomes(product, "prefetch", "unready"):  # <link rel=prefetch>
            assert time.monotonic() < deadline, "nothing has been prefetched"
            time.sleep(0.1)
        time.sleep(1.5)
        assert outcomes(product, "prefetch", "page") == 2, "the visit, and the speculation rule"
        assert product.store.snapshot("prefetch").leases == ()
        assert starts(product, "prefetch") == 1

        # Then the page goes where it had the browser prerender the waiting page.
        product.wait_phase(Phase.READY, gpu="prefetch")
        assert starts(product, "prefetch") == 2


def test_without_javascript_a_form_wakes_and_the_page_refreshes_itself(
    product: Deployment, open_tab: OpenTab
) -> None:
    tab = open_tab(java_script_enabled=False)
    page = tab.page
    url = address(product, "noscript", "/some/page?with=a&query=%C3%A9")
    page.goto(url)
    assert headline(page) == "The GPU is asleep"
    # Playwright's text and role locators pass over everything inside <noscript>.
    assert page.locator("noscript .note").inner_text() == "This page looks again every 5 seconds."
    page.wait_for_timeout(1000)
    assert starts(product, "noscript") == 0

    page.locator("noscript button").click()
    assert page.url == url
    assert headline(page) != "The GPU is asleep"
    assert page.locator("noscript button").count() == 0
    page.get_by_text('"pid"').wait_for()  # by refreshing, nobody clicks
    assert page.url == url
    assert starts(product, "noscript") == 1


def test_wake_on_click(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    page.goto(address(product, "click", "/page"))
    page.wait_for_timeout(2000)
    assert headline(page) == "The GPU is asleep"
    assert tab.wakes == []
    assert starts(product, "click") == 0

    page.get_by_role("button", name="Wake the GPU").click()
    page.get_by_text('"pid"').wait_for()
    assert page.url == address(product, "click", "/page")
    assert len(tab.wakes) == 1
    assert starts(product, "click") == 1


def test_wake_on_never(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    page.goto(address(product, "never"))
    page.get_by_text("woken from the command line").wait_for()
    page.wait_for_timeout(1000)
    assert page.get_by_role("button").count() == 0
    assert tab.wakes == []
    # Nor does a script that posts by itself get anywhere.
    status = "fetch('/_qwenctl/api/wake?gpu=never', {method: 'POST'}).then((r) => r.status)"
    with page.expect_response("**/api/wake*"):
        assert page.evaluate(status) == 403
    assert starts(product, "never") == 0
    tab.complaints.clear()  # the 403 that was asked for


def test_a_failure_is_explained_and_can_be_retried(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    page.goto(address(product, "full"))
    box = page.locator("#failure")
    box.get_by_text("The cloud has no such machine free right now.").wait_for()
    assert headline(page) == "That did not work yet"
    assert page.locator("#failure-code dd").inner_text() == "no_capacity"
    assert re.fullmatch(r"in \d\ss", page.locator("#failure-retry dd").inner_text())
    assert page.locator('[data-key="start"]').get_attribute("data-state") == "failed"
    assert page.locator("#failure-attempts dd").inner_text() == "1"
    # While the page is open it is tried again.
    page.locator("#failure-attempts dd").get_by_text("2").wait_for()
    assert len(tab.wakes) == 1
    assert starts(product, "full") == 0


def test_a_block_is_explained_and_lifting_it_lets_wake(
    product: Deployment, open_tab: OpenTab
) -> None:
    qwenctl(product, "block", "-g", "blocked", "--for", "2h", "--because", "driver update")
    tab = open_tab()
    page = tab.page
    page.goto(address(product, "blocked"))
    assert headline(page) == "The GPU is kept off for now"
    box = page.locator("#blocked")
    assert box.get_by_text("It is under maintenance.").is_visible()
    assert page.locator("#blocked-reason dd").inner_text() == "driver update"
    assert page.locator("#blocked-by dd").inner_text() != ""
    assert "for another 2" in page.locator("#blocked-until dd").inner_text()
    page.wait_for_timeout(1000)
    assert page.get_by_role("button").count() == 0
    assert tab.wakes == []
    assert starts(product, "blocked") == 0

    # The page that is being looked at hears of it, and wakes as a visit does.
    qwenctl(product, "unblock", "-g", "blocked")
    page.get_by_text('"pid"').wait_for()
    assert starts(product, "blocked") == 1


@pytest.mark.parametrize(
    ("locale", "lang", "words"),
    [
        ("zh-CN", "zh-Hans", "此 GPU 只能通过命令行、API 客户端或定时计划唤醒。"),
        ("zh-TW", "zh-Hans", "GPU 正在休眠"),
        ("en-GB", "en", "The GPU is asleep"),
        ("fr-FR", "en", "The GPU is asleep"),
    ],
)
def test_the_page_speaks_the_visitors_language(
    product: Deployment, open_tab: OpenTab, locale: str, lang: str, words: str
) -> None:
    page = open_tab(locale=locale).page
    page.goto(address(product, "never"))
    page.wait_for_timeout(700)  # the script has written its words, too
    assert page.locator("html").get_attribute("lang") == lang
    assert page.get_by_text(words).is_visible()


def test_seven_tabs_of_a_browser_wait_together(product: Deployment, open_tab: OpenTab) -> None:
    """Over HTTP/1.1 a browser has six connections to a host."""
    first = open_tab()
    tabs = [first, *(open_tab(first.page.context) for _ in range(6))]
    for tab in tabs:
        tab.page.goto(address(product, "seven"))
    for tab in tabs:
        tab.page.get_by_text('"pid"').wait_for()
    assert starts(product, "seven") == 1
    assert sum(len(tab.wakes) for tab in tabs) == 1


def test_the_original_address_is_opened(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    url = address(product, "query", "/a%20b/c?d=%26e&f=1")
    tab.page.goto(f"{url}#part")
    tab.page.get_by_text('"pid"').wait_for()
    assert tab.page.url == f"{url}#part"
    assert tab.navigations == [url] * 2


def test_a_webui_that_always_breaks_makes_no_reload_loop(
    product: Deployment, open_tab: OpenTab
) -> None:
    tab = open_tab()
    page = tab.page
    url = address(product, "flapping", "/page?q=1")
    page.goto(url)
    # The node may die before or after it has taken the connection: a page that says so, or the
    # waiting page again, which tries three times and then leaves it to a person.
    broke = page.get_by_role("link", name="Try again")
    gave_up = page.get_by_role("button", name="Open the page")
    broke.or_(gave_up).wait_for()
    page.wait_for_timeout(3000)
    assert set(tab.navigations) == {url}
    assert 2 <= len(tab.navigations) <= 4
    assert broke.or_(gave_up).is_visible()
    assert starts(product, "flapping") == 1


PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def locked(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with a password, and the sample WebUI behind it."""
    done = subprocess.run(
        [QWENCTL, "access", "hash-password"], input=PASSWORD, capture_output=True, text=True
    )
    deployment = Deployment(
        tmp_path_factory.mktemp("locked"),
        name="locked",
        gpus={"main": sample_webui()},
        settings={"access": {"mode": "password", "password_hash": done.stdout.strip()}},
    )
    try:
        yield deployment.start()
    finally:
        deployment.close()


def test_signing_in_leads_to_the_page_that_was_asked_for(
    locked: Deployment, open_tab: OpenTab
) -> None:
    tab = open_tab()
    page = tab.page
    url = address(locked, "main", "/?__theme=dark&from=mail%26more")
    page.goto(url)
    assert page.url.startswith(address(locked, "main", "/_qwenctl/login?next="))
    password = page.get_by_label("Password")
    assert password.evaluate("element => element === document.activeElement")

    password.fill("wrong")
    password.press("Enter")
    page.get_by_role("alert").get_by_text("That is not the password.").wait_for()
    assert page.context.cookies() == []
    assert starts(locked, "main") == 0

    password.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(url)
    page.get_by_text("loading weights").wait_for()
    page.locator("textarea").first.wait_for()
    assert page.url == url
    assert len(tab.wakes) == 1
    assert starts(locked, "main") == 1
    cookie = page.context.cookies()[0]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"

    # Gradio's own requests carry the cookie.
    say(page, "Hello")
    page.get_by_test_id("bot").last.get_by_text("I am the sample WebUI").wait_for()

    # Signed out, nothing is answered any more.
    page.goto("about:blank")
    qwenctl(locked, "down", "--now")
    page.goto(address(locked, "main", "/_qwenctl/"))
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Password").wait_for()
    assert page.context.cookies() == []
    assert page.evaluate("fetch('/config').then((answer) => answer.status)") == 401
    tab.complaints.clear()  # the 401 that was asked for


def test_what_our_pages_must_not_do_would_be_seen(product: Deployment, open_tab: OpenTab) -> None:
    """Each tab of this module is checked at its end; here the check meets what it looks for."""
    tab = open_tab()
    page = tab.page
    page.goto(address(product, "never"))
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://example.org/x'}))")
    page.evaluate(
        "document.head.append(Object.assign(document.createElement('script'), {text: '1'}))"
    )
    page.evaluate("console.error('oops')")
    page.evaluate("void fetch('http://example.org/').catch(() => 0)")
    page.wait_for_timeout(500)
    told = " ".join(tab.complaints)
    for what in ("img-src", "script-src", "connect-src", "oops"):
        assert what in told, tab.complaints
    tab.complaints.clear()
    tab.strangers.clear()
