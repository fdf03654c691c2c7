"""Render the pages: waiting page, choice of a tier, sign-in, errors.

The data plane answers with them directly; `flask_app` returns the same pages.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, Undefined

from qwenctl.core.identity import Identity
from qwenctl.errors import StoreUnavailable

from ..data.admission import may_wake
from ..data.routing import tier_status
from ..data.services import Services
from ..data.waiting import WaitingPages
from ..http.cookies import VISIT_COOKIE, VISIT_SLOTS, set_cookie, visit_slot
from ..http.problem import Problem
from ..http.request import Request, Send, send_answer
from . import i18n
from .status_stream import StatusStream

log = logging.getLogger("qwenctl.proxy")

PREFIX = "/_qwenctl"

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Page:
    """A rendered answer."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def environment(undefined: type[Undefined] = Undefined) -> Environment:
    """Return the Jinja environment of the pages' templates."""
    templates = FileSystemLoader(Path(__file__).parents[1] / "templates")
    return Environment(loader=templates, autoescape=True, auto_reload=False, undefined=undefined)


def safe_path(target: str) -> str:
    """Return the target if it is a path of this site, or else ``/``."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    safe = target.startswith("/") and not target.startswith(("//", "/\\"))
    safe = safe and target.isprintable()  # browsers drop tabs and line ends
    return target if safe and not parts.scheme and not parts.netloc else "/"


def store_lost(error: StoreUnavailable) -> Problem:
    """Log why the store is lost; return the problem to answer with."""
    log.warning("%s", error)
    detail = "the proxy cannot reach its store; nothing is started or stopped"
    return Problem(503, "store_lost", detail, 5.0)


def crashed(path: str) -> Problem:
    """Log the current exception; return a problem with a reference to the log."""
    reference = secrets.token_hex(4)
    log.exception("a request to %s failed (reference %s)", path, reference)
    detail = f"something went wrong in the proxy (reference {reference})"
    return Problem(500, "internal", detail)


class Pages:
    """Renders pages, and sends them instead of an answer of the WebUI."""

    def __init__(self, services: Services, stream: StatusStream, waiting: WaitingPages) -> None:
        self._config = services.config
        self._stream = stream
        self._waiting = waiting
        self._templates = environment()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="pages")

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    # Instead of an answer of the WebUI

    async def waiting(self, request: Request, identity: Identity, gpu: str, send: Send) -> None:
        """Answer with the waiting page of a GPU."""
        await self._answer(request, send, lambda: self._waiting_in_place(request, identity, gpu))

    async def sign_in(self, request: Request, send: Send) -> None:
        """Send a browser to the login form, and back afterwards."""
        await self._answer(request, send, lambda: self._to_login_in_place(request))

    async def problem(self, request: Request, send: Send, problem: Problem) -> None:
        """Answer with a page that explains an error."""
        again = request.target if problem.status >= 500 else ""
        await self._answer(request, send, lambda: self.problem_page(request, problem, again))

    def _to_login_in_place(self, request: Request) -> Page:
        self._check_mount(request)
        return self.to_login(request.target)

    def _check_mount(self, request: Request) -> None:
        """Refuse to send a page where its links would lead to another application.

        By `proxy.public_url`, or Traefik's X-Forwarded-Prefix, visitors reach us below a path.

        Raises:
            Problem: 501.
        """
        url = urlsplit(self._config.proxy.public_url)
        path = url.path if request.hostname == url.hostname else ""
        if request.trusted_peer:
            path = request.headers.get("x-forwarded-prefix", "").strip() or path
        if path.strip("/"):
            detail = (
                f"this proxy is reached below {path[:100]}, and its pages need a host name of their "
                "own, such as gpu.example.com; see docs/reverse-proxies.md"
            )
            raise Problem(501, "below_a_path", detail)

    def _waiting_in_place(self, request: Request, identity: Identity, gpu: str) -> Page:
        self._check_mount(request)
        page, eta = self.waiting_page(request, identity, gpu, request.target)
        retry_after = {"Retry-After": str(max(2, round(eta or 10)))}
        return Page(page.body, 503, {**page.headers, **retry_after})

    async def _answer(self, request: Request, send: Send, make: Callable[[], Page]) -> None:
        """Render in a thread, because a status may be read from the store."""

        def page() -> Page:
            try:
                return make()
            except Problem as error:
                problem = error
            except StoreUnavailable as error:
                problem = store_lost(error)
            except Exception:
                problem = crashed(request.path)
            return self.problem_page(request, problem, request.target)

        answer = await asyncio.get_running_loop().run_in_executor(self._threads, page)
        headers = {"Content-Type": "text/html; charset=utf-8", **SECURITY_HEADERS, **answer.headers}
        await send_answer(request, send, answer.status, headers, answer.body.encode())

    # Rendering

    def waiting_page(
        self, request: Request, identity: Identity, gpu: str, target: str
    ) -> tuple[Page, float | None]:
        """Return the waiting page, and the expected seconds until the GPU is ready.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        allowed = may_wake(self._config.gpu[gpu], identity, by_page=True)
        status = self._stream.status(gpu, may_wake=allowed)
        if status["wanted"] and request.is_navigation:  # a page without script reloads itself
            self._waiting.seen(gpu, request, identity)
        tiers = self.tiers(request)
        texts = self._texts(request)
        bill = self._config.gpu[gpu].settings.off_bill
        asleep = {"lead.asleep": texts[f"lead.asleep.{bill}"]}
        body = self._render(
            "waiting.html",
            request,
            t={**texts, **asleep},
            gpu=gpu,
            status=status,
            next_url=safe_path(target),
            signed_in=identity.may_sign_out,
            may_give_up=allowed and self._waiting.may_give_up(identity),
            tiers=tiers,
        )
        headers = {}
        if identity.shares_address and not visit_slot(request):
            # Who gives up, or chooses another tier, then ends no wait of others.
            headers["Set-Cookie"] = set_cookie(request, VISIT_COOKIE, secrets.choice(VISIT_SLOTS))
        return Page(body, headers=headers), status.get("eta_seconds")

    def tier_page(self, request: Request, gpu: str, target: str) -> Page:
        """Return the choice of a tier.

        Raises:
            Problem: there is no choice.
            StoreUnavailable: Redis cannot be reached.
        """
        tiers = self.tiers(request)
        if not tiers:
            raise Problem(404, "not_found", "there is only one GPU here")
        return Page(
            self._render("tier.html", request, gpu=gpu, tiers=tiers, next_url=safe_path(target))
        )

    def login_page(
        self,
        request: Request,
        target: str,
        *,
        wrong: bool = False,
        busy: bool = False,
        retry_after: float = 0.0,
    ) -> Page:
        """Return the login form; ``retry_after`` in seconds: too many wrong passwords.

        ``busy``: too many are being checked at this moment.
        Where there is no password, return a page that says so.
        """
        if not self._config.access.password_hash:
            table = self._texts(request)
            link = {"url": safe_path(target), "label": table["message.retry"]}
            texts = {"title": table["login.title"], "text": table["login.elsewhere"]}
            return Page(self._render("message.html", request, **texts, link=link), 403)
        error = "login.busy" if busy else "login.wrong" if wrong else ""
        body = self._render(
            "login.html",
            request,
            next_url=safe_path(target),
            error=self._texts(request)[error] if error else "",
            retry_after=retry_after,
        )
        status = 503 if busy else 429 if retry_after else 403 if wrong else 200
        wait = 1 if busy else math.ceil(retry_after)
        return Page(body, status, {"Retry-After": str(wait)} if wait else {})

    def to_login(self, target: str) -> Page:
        """Return a redirect to the login form, which redirects to ``target``."""
        where = f"{PREFIX}/login?next={quote(safe_path(target), safe='/')}"
        return Page("", 303, {"Location": where})

    def problem_page(
        self, request: Request, problem: Problem, again: str = "", *, shown: bool = True
    ) -> Page:
        """Return a page about an error, with a link to the path ``again``.

        ``shown``: whether the page has the problem's detail.
        """
        if problem.status == 401:
            return self.to_login(again)
        table = self._texts(request)
        body = self._render(
            "message.html",
            request,
            title=table.get(f"message.{problem.status}.title", table["message.title"]),
            text=table.get(f"message.{problem.status}.text", problem.detail),
            detail=problem.detail if shown else "",
            link={"url": safe_path(again), "label": table["message.retry"]} if again else None,
        )
        return Page(body, problem.status, problem.headers)

    def tiers(self, request: Request, max_age: float | None = None) -> list[dict[str, Any]]:
        """Return the state of each GPU of this host; empty if there is no choice.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        names = self._config.gpus_at(request.hostname)
        if len(names) < 2:
            return []
        return [
            tier_status(
                self._config.gpu[name].tier,
                self._stream.status(name, may_wake=True, max_age=max_age),
            )
            for name in names
        ]

    def _lang(self, request: Request) -> str:
        accepted = request.headers.get("accept-language", "")
        return i18n.negotiate(accepted, self._config.language)

    def _texts(self, request: Request) -> dict[str, str]:
        return i18n.text(self._lang(request))

    def _render(self, template: str, request: Request, **values: Any) -> str:
        lang = self._lang(request)
        given = {"lang": lang, "t": i18n.text(lang), **values}
        return self._templates.get_template(template).render(given)
