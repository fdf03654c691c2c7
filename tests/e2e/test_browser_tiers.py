"""Two GPUs behind one address, as people see them: the choice on the waiting page in Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwenctl.core.phase import Phase
from tests.e2e.browsing import Tab
from tests.support.deployment import Deployment

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

OpenTab = Callable[..., Tab]


@pytest.fixture
def product(chromium: str, tmp_path: Path) -> Iterator[Deployment]:
    """The quick GPU takes long to start here, so that there is time to choose the other one."""
    gpus = {
        "small": {"tier": "speed", "local": {"boot_seconds": 8}, "idle_timeout": 60},
        "large": {"tier": "quality", "local": {"boot_seconds": 2}, "idle_timeout": 60},
    }
    deployment = Deployment(tmp_path, name="tiers", gpus=gpus)
    try:
        yield deployment.start()
    finally:
        deployment.close()


def test_one_chooses_while_waiting_and_again_later(product: Deployment, open_tab: OpenTab) -> None:
    tab = open_tab()
    page = tab.page
    url = product.proxies[0].url
    page.goto(f"{url}/some?where=1")
    speed = page.get_by_role("button", name="Speed")
    quality = page.get_by_role("button", name="Quality asleep, takes about")
    assert speed.get_attribute("aria-pressed") == "true"
    page.locator('#tiers [value="speed"]').get_by_text(
        re.compile("ready in about|waking")
    ).wait_for()
    product.wait_phase(Phase.STARTING, Phase.BOOTING, gpu="small")
    assert product.store.snapshot("large").phase is Phase.OFF

    quality.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/some?where=1")
    page.locator('#tiers [value="quality"][aria-pressed="true"]').wait_for()
    assert re.search(r"· large$", page.title())
    page.locator("#tiers").wait_for(state="detached")  # the WebUI, opened by itself
    assert page.url == f"{url}/some?where=1"
    assert {r.url.partition("gpu=")[2] for r in tab.wakes[1:]} == {"large"}
    product.wait_phase(Phase.OFF, gpu="small", timeout=60)  # nobody wants it any more
    assert len(product.instance("large").starts) == 1

    # The page of its own shows what the others do, and leads back.
    page.goto(f"{url}/_qwenctl/tier?next=/back")
    page.get_by_role("button", name="Quality ready").wait_for()
    page.get_by_role("button", name="Speed asleep").click()
    page.wait_for_url(f"{url}/back")
    page.locator('#tiers [value="speed"][aria-pressed="true"]').wait_for()
    product.wait_phase(Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY, gpu="small")


def test_one_chooses_without_script_and_in_chinese(product: Deployment, open_tab: OpenTab) -> None:
    page = open_tab(locale="zh-CN", java_script_enabled=False).page
    url = product.proxies[0].url
    page.goto(f"{url}/")
    page.get_by_role("button", name="质量 休眠中，唤醒约需").click()
    page.locator('#tiers [value="quality"][aria-pressed="true"]').wait_for()
    assert page.title().endswith("· large")
    page.get_by_role("button", name="唤醒 GPU").click()
    product.wait_phase(Phase.READY, gpu="large")
    page.locator("#tiers").wait_for(state="detached")
    assert not product.instance("small").starts
