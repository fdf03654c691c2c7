"""What a browser does with a deployment: arguments, addresses, and a witness of each tab."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from tests.support.deployment import ROOT, Deployment
from tests.support.net import free_ports
from tests.support.program import PROGRAM

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request, Response

QWENCTL = str(PROGRAM)
SAMPLE = ROOT / "examples" / "webui" / "app.py"

# *.localhost is this machine, and there is nothing else: an external request fails at once.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP *.localhost 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

# Chromium says so itself when a page comes with an error status: the waiting page (503), the page
# about a broken connection (502), the login page after a wrong password (403).
EXPECTED_ERRORS = tuple(f"responded with a status of {status}" for status in (403, 502, 503))


def sample_webui(**changes: Any) -> dict[str, Any]:
    """Changes to `gpu_table` for a GPU that runs the sample WebUI, a real Gradio app."""
    port = free_ports(1)[0]
    command = [sys.executable, str(SAMPLE), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--load-seconds", "1", "--answer-words", "40", "--tokens-per-second", "20"]
    return {
        "preset": "gradio",
        "idle_timeout": 4,
        "boot_estimate": 10,
        "local": {"boot_seconds": 1, "stop_seconds": 0.5},
        "service": {"command": command, "port": port, "activity": {"path": "/activity"}},
        **changes,
    }


@dataclass
class Tab:
    """A page, and what it did."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    navigations: list[str] = field(default_factory=list)
    """Every document that the main frame asked for."""
    complaints: list[str] = field(default_factory=list)
    """Errors on the console and in scripts of pages that are ours, CSP violations among them."""
    strangers: list[str] = field(default_factory=list)
    """Requests of pages that are ours to any other host."""
    ours: bool = False
    """Whether the document shown is one of our own pages."""

    def __post_init__(self) -> None:
        self.page.on("request", self._request)
        self.page.on("response", self._response)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._complain(f"script: {error}"))

    @property
    def wakes(self) -> list[Request]:
        """The wakes that it posted."""
        paths = ("/_qwenctl/api/wake", "/_qwenctl/wake")
        return [r for r in self.requests if urlsplit(r.url).path in paths]

    def _is_document(self, request: Request) -> bool:
        return request.is_navigation_request() and request.frame == self.page.main_frame

    def _request(self, request: Request) -> None:
        self.requests.append(request)
        if self._is_document(request):
            self.navigations.append(request.url)
        elif self.ours:
            host = urlsplit(self.page.url).netloc
            if urlsplit(request.url).scheme != "data" and urlsplit(request.url).netloc != host:
                self.strangers.append(request.url)

    def _response(self, response: Response) -> None:
        if self._is_document(response.request):
            # Only our own pages have such a strict policy.
            policy = response.headers.get("content-security-policy", "")
            self.ours = policy.startswith("default-src 'none'")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._complain(f"{message.type}: {message.text}")

    def _complain(self, text: str) -> None:
        if self.ours and not any(expected in text for expected in EXPECTED_ERRORS):
            self.complaints.append(text)


def qwenctl(deployment: Deployment, *arguments: str) -> str:
    """Run the command line tool on that deployment; what it printed."""
    command = [QWENCTL, "-c", str(deployment.config_file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def address(deployment: Deployment, gpu: str, path: str = "/") -> str:
    """Where a browser finds that GPU."""
    port = urlsplit(deployment.proxies[0].url).port
    host = "127.0.0.1" if gpu == "main" else f"{gpu}.localhost"
    return f"http://{host}:{port}{path}"


def outcomes(deployment: Deployment, gpu: str, outcome: str) -> int:
    """How many requests for that GPU ended so, as the proxy counts them."""
    name = f'qwenctl_requests_total{{gpu="{gpu}",outcome="{outcome}"}} '
    text = requests.get(f"{deployment.proxies[0].url}/_qwenctl/metrics", timeout=10).text
    found = [line for line in text.splitlines() if line.startswith(name)]
    return int(float(found[0].removeprefix(name))) if found else 0
