"""Chromium for the tests that look at real pages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.browsing import ARGUMENTS, Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from qwenctl.cli.demo.chat import sample_png  # needs Gradio's client

    path = tmp_path / "sample.png"
    path.write_bytes(sample_png(90, 60))
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; a test that has no browser or no Gradio is skipped, except in CI."""
    missing = [
        what
        for what, there in {
            "chromium": shutil.which("chromium"),
            "playwright": importlib.util.find_spec("playwright"),
            "gradio": importlib.util.find_spec("gradio"),
        }.items()
        if not there
    ]
    if missing:
        message = f"not installed here: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return shutil.which("chromium") or ""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Open a tab in a browser profile of its own; options are those of `Browser.new_context`.

    At the end nothing may be left to complain about on pages that are ours.
    """
    contexts: list[BrowserContext] = []
    tabs: list[Tab] = []

    def new(context: BrowserContext | None = None, **options: Any) -> Tab:
        if context is None:
            context = browser.new_context(**{"locale": "en-US", **options})
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        tabs.append(Tab(page))
        return tabs[-1]

    yield new
    for context in contexts:
        context.close()
    assert [complaint for tab in tabs for complaint in tab.complaints] == []
    assert [url for tab in tabs for url in tab.strangers] == []
