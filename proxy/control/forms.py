"""Pages at addresses of their own, and the forms on them: sign-in, wake, choice of a tier."""

from __future__ import annotations

from collections.abc import Iterable

from flask import request
from flask.typing import ResponseReturnValue

from qwenctl.config.deployment import UnknownTier

from ..auth.password import Throttled
from ..data.services import Services
from ..data.waiting import WaitingPages
from ..http.cookies import SESSION_COOKIE, TIER_COOKIE
from ..http.problem import Problem
from .pages import Pages
from .views import Route, Views

__all__ = ["Forms"]


class Forms(Views):
    """Views for people without script."""

    def __init__(self, services: Services, pages: Pages, waiting: WaitingPages) -> None:
        super().__init__(services)
        self._pages, self._waiting = pages, waiting

    def routes(self) -> Iterable[Route]:
        return (
            ("GET", "/", self.waiting),
            ("GET", "/waiting", self.waiting),
            ("GET", "/sign-in", self.sign_in),
            ("GET", "/login", self.login),
            ("POST", "/login", self.check_password),
            ("POST", "/logout", self.logout),
            ("POST", "/wake", self.wake),
            ("GET", "/tier", self.tier),
            ("POST", "/tier", self.choose_tier),
        )

    def waiting(self) -> ResponseReturnValue:
        if (identity := self.visitor) is None:
            return self.sign_in()
        page, _ = self._pages.waiting_page(self.request, identity, self.gpu, self.target)
        return self.answer(page)

    def sign_in(self) -> ResponseReturnValue:
        return self.answer(self._pages.to_login(self.target))

    def login(self) -> ResponseReturnValue:
        return self.answer(self._pages.login_page(self.request, self.target))

    def check_password(self) -> ResponseReturnValue:
        self.check_origin()
        asked = self.request
        password = request.form.get("password", "")[:1024]
        try:
            cookie = self._services.authenticators.sign_in(password, asked.client)
        except Throttled as throttled:
            seconds = throttled.seconds
            return self.answer(self._pages.login_page(asked, self.target, retry_after=seconds))
        if not cookie:
            return self.answer(self._pages.login_page(asked, self.target, wrong=True))
        return self.redirect(
            cookie=SESSION_COOKIE, value=cookie, seconds=self._config.access.session
        )

    def logout(self) -> ResponseReturnValue:
        self.check_origin()
        if sessions := self._services.authenticators.sessions:
            sessions.end(self.request)
        return self.redirect("/", cookie=SESSION_COOKIE, seconds=0)

    def wake(self) -> ResponseReturnValue:
        identity = self.identity
        self._waiting.wake(self.gpu, self.request, identity)
        return self.redirect()

    def tier(self) -> ResponseReturnValue:
        if self.visitor is None:
            return self.sign_in()
        return self.answer(self._pages.tier_page(self.request, self.gpu, self.target))

    def choose_tier(self) -> ResponseReturnValue:
        identity = self.identity
        self.check_origin()
        names = self._config.gpus_at(self.request.hostname)
        tier = request.form.get("tier", "")
        try:
            chosen = self._config.choose_gpu(names, tier=tier) if len(names) > 1 else ""
        except UnknownTier as error:
            raise Problem(400, "unknown_tier", str(error)) from None
        if not chosen or not tier:
            raise Problem(400, "unknown_tier", "no tier was chosen, or there is no choice here")
        self._waiting.choose(chosen, self.request, identity)
        return self.redirect(cookie=TIER_COOKIE, value=tier)
