"""The Flask application under ``/_qwenctl/``: pages, forms, the JSON API and metrics.

Its requests are short; they may ask Redis, and never a cloud. `status_stream` has the connections
that stay open, because they would hold Flask's threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from qwenctl.config.deployment import UnknownTier
from qwenctl.core.identity import Identity
from qwenctl.core.wakes import wakes
from qwenctl.errors import StoreUnavailable

from ..auth.password import Busy
from ..auth.throttle import Throttled
from ..data.admission import may_wake
from ..data.services import Services
from ..data.waiting import WaitingPages
from ..http.cookies import SESSION_COOKIE, TIER_COOKIE, set_cookie
from ..http.problem import PROBLEM_TYPE, Problem
from ..http.request import Request
from .pages import PREFIX, SECURITY_HEADERS, Page, Pages, crashed, safe_path, store_lost
from .status_stream import StatusStream, asked_gpu

TIERS_AGE = 2.0
"""How old the answer of ``/api/tiers`` may be, in seconds: every waiting page asks each 3 s."""


def make_flask(
    services: Services, stream: StatusStream, pages: Pages, waiting: WaitingPages
) -> Flask:
    """Return the application with all its routes."""
    folder = Path(__file__).parents[1] / "static"
    app = Flask(__name__, static_folder=folder, static_url_path=f"{PREFIX}/static")
    views = _Views(services, stream, pages, waiting)
    for method, path, view in views.routes():
        app.add_url_rule(f"{PREFIX}{path}", f"{method} {path}", view, methods=[method])
    app.register_error_handler(Problem, views.problem)
    app.register_error_handler(StoreUnavailable, lambda error: views.problem(store_lost(error)))
    app.register_error_handler(HTTPException, views.http_error)
    app.register_error_handler(Exception, lambda _: views.problem(crashed(request.path)))
    app.after_request(_harden)
    return app


def _harden(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint == "static":
        response.headers["Cache-Control"] = "public, max-age=600"
    return response


class _Views:
    def __init__(
        self, services: Services, stream: StatusStream, pages: Pages, waiting: WaitingPages
    ) -> None:
        self._services = services
        self._config = services.config
        self._stream, self._pages, self._waiting = stream, pages, waiting

    def routes(self) -> tuple[tuple[str, str, Callable[[], ResponseReturnValue]], ...]:
        """Return method, path below the prefix, and view of each route."""
        return (
            ("GET", "/", self.waiting),
            ("GET", "/waiting", self.waiting),
            ("GET", "/sign-in", self.sign_in),
            ("GET", "/login", self.login),
            ("POST", "/login", self.check_password),
            ("POST", "/logout", self.logout),
            ("POST", "/wake", self.wake),
            ("POST", "/give-up", self.give_up),
            ("GET", "/tier", self.tier),
            ("POST", "/tier", self.choose_tier),
            ("GET", "/api/tiers", self.api_tiers),
            ("GET", "/api/status", self.api_status),
            ("POST", "/api/wake", self.api_wake),
            ("POST", "/api/give-up", self.api_give_up),
            ("GET", "/metrics", self.metrics),
        )

    # The request

    @property
    def request(self) -> Request:
        return Request.of(request.environ["asgi.scope"], self._services.trusted)

    @property
    def visitor(self) -> Identity | None:
        return self._services.authenticators.identify(self.request)

    @property
    def identity(self) -> Identity:
        """The visitor.

        Raises:
            Problem: 401, the visitor must sign in first.
        """
        if (identity := self.visitor) is None:
            raise Problem(401, "sign_in", "sign in with a browser, or send an API key")
        return identity

    @property
    def gpu(self) -> str:
        return asked_gpu(self._config, self.request)

    @property
    def tries_now(self) -> bool:
        """Whether a person asks to try a failed GPU again at once."""
        return request.args.get("now") == "1"

    @property
    def target(self) -> str:
        """The path of this site to go to afterwards."""
        return safe_path(request.values.get("next", "/"))

    def check_origin(self) -> None:
        """Refuse a form that another site made a browser send (CSRF).

        Raises:
            Problem: 403.
        """
        if not self.request.same_origin:
            raise Problem(403, "cross_site", "this form was sent by another site")

    # Answers

    def answer(self, page: Page) -> Response:
        """Return a page as Flask's response."""
        return make_response(page.body, page.status, page.headers)

    def redirect(
        self, target: str = "", *, cookie: str = "", value: str = "", seconds: float | None = None
    ) -> Response:
        """Return a redirect to ``target``, by default to `target`, that may set a cookie."""
        headers = {"Location": target or self.target}
        if cookie:
            headers["Set-Cookie"] = set_cookie(self.request, cookie, value, seconds)
        return make_response("", 303, headers)

    def problem(self, error: Problem, *, shown: bool = True) -> ResponseReturnValue:
        """Return a page for a person, problem+json for everybody else."""
        asked = self.request
        if not asked.is_navigation:
            headers = {"Content-Type": PROBLEM_TYPE, **error.headers}
            return make_response(error.body, error.status, headers)
        if error.status == 401:
            return self.sign_in()
        return self.answer(self._pages.problem_page(asked, error, shown=shown))

    def http_error(self, error: HTTPException) -> ResponseReturnValue:
        code = (error.name or "error").lower().replace(" ", "_")
        problem = Problem(error.code or 500, code, error.description or error.name)
        return self.problem(problem, shown=False)  # Flask's own detail says nothing that helps

    # Pages at addresses of their own, and their forms, for people without script

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
        except Busy:
            return self.answer(self._pages.login_page(asked, self.target, busy=True))
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
        self._waiting.wake(self.gpu, self.request, identity, try_now=self.tries_now)
        return self.redirect()

    def give_up(self) -> ResponseReturnValue:
        identity = self.identity
        self._waiting.give_up(self.gpu, self.request, identity)
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

    # JSON

    def api_tiers(self) -> ResponseReturnValue:
        _ = self.identity
        return {"tiers": self._pages.tiers(self.request, TIERS_AGE)}

    def api_status(self) -> ResponseReturnValue:
        identity, gpu = self.identity, self.gpu
        if self.request.from_browser:  # a page that polls: hidden, without a stream, or sharing one
            watched = request.args.get("visible") == "1"
            self._waiting.seen(gpu, self.request, identity, watched=watched)
        return self._status(gpu, identity)

    def api_wake(self) -> ResponseReturnValue:
        identity, gpu = self.identity, self.gpu
        self._waiting.wake(gpu, self.request, identity, try_now=self.tries_now)
        return self._status(gpu, identity, fresh=True), 202

    def api_give_up(self) -> ResponseReturnValue:
        identity, gpu = self.identity, self.gpu
        self._waiting.give_up(gpu, self.request, identity)
        return self._status(gpu, identity, fresh=True)

    def _status(self, gpu: str, identity: Identity, *, fresh: bool = False) -> dict[str, Any]:
        allowed = may_wake(self._config.gpu[gpu], identity, by_page=True)
        return self._stream.status(gpu, may_wake=allowed, fresh=fresh)

    # For Prometheus

    def metrics(self) -> ResponseReturnValue:
        if self.visitor is None and not self.request.peer_is_loopback:
            raise Problem(401, "sign_in", "metrics need an API key, or a scraper on this machine")
        metrics, store = self._services.metrics, self._services.store
        for name in self._config.gpu:
            metrics.observe(store.snapshot(name), self._services.usage.in_flight(name))
            history = [wake for wake in wakes(store.events(name, 200)) if wake.durations]
            for step, seconds in (history[-1].durations if history else {}).items():
                metrics.step_seconds.labels(name, step).set(seconds)
        return Response(metrics.text(), mimetype="text/plain; version=0.0.4")
