"""The control plane: Flask under ``/_qwenctl/``. Short requests; may touch Redis, never the cloud.

Streams (waiting pages' events) are in `feed`, because nothing that holds a connection open for long
may live in a Flask thread.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Response,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WSGIResponse

from qwenctl import __version__
from qwenctl.config.deployment import Config, UnknownTier
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.wakes import wakes
from qwenctl.errors import StoreUnavailable
from qwenctl.protocol import messages as wire
from qwenctl.store.store import Store

from ..auth.authenticator import Authenticator
from ..auth.identity import COOKIE, VISIT_COOKIE, VISIT_SLOTS, Identity, visit_slot
from ..auth.throttle import Throttled
from ..data.admission import may_wake
from ..data.headers import TIER_COOKIE
from ..data.routing import gpu_of, tier_status
from ..data.usage import UsageTracker
from ..http.metrics import Metrics
from ..http.problem import Problem, problem_body
from ..http.request import Networks, Request
from . import i18n
from .node_api import NodeDesk
from .status_stream import Feed

__all__ = [
    "PREFIX",
    "make_control",
]

log = logging.getLogger("qwenctl.proxy")

PREFIX = "/_qwenctl"

TIERS_AGE = 2.0
"""How old the answer of ``/api/tiers`` may be, in seconds: every waiting page asks each 3 s."""

TAKE_BACKS = 10
"""How many waits of people who need not sign in are taken back in a minute; others run out."""

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
class Parts:
    """What the control plane works with."""

    config: Config
    store: Store
    authenticator: Authenticator
    feed: Feed
    desk: NodeDesk
    metrics: Metrics
    usage: UsageTracker
    trusted: Networks


def make_control(parts: Parts) -> Flask:
    """The Flask application."""
    app = Flask(
        __name__,
        root_path=str(Path(__file__).parents[1]),
        static_folder="static",
        static_url_path=f"{PREFIX}/static",
    )
    app.jinja_env.auto_reload = False
    views = Views(parts)
    blueprint = Blueprint("control", __name__, url_prefix=PREFIX)
    add = blueprint.add_url_rule
    add("/", "home", views.waiting)
    add("/waiting", "waiting", views.waiting)
    add("/sign-in", "sign_in", views.sign_in)
    add("/problem", "told", views.told)
    add("/login", "login", views.login, methods=["GET", "POST"])
    add("/logout", "logout", views.logout, methods=["POST"])
    add("/wake", "wake_form", views.wake_form, methods=["POST"])
    add("/tier", "tier", views.tier)
    add("/tier", "choose_tier", views.choose_tier, methods=["POST"])
    add("/api/tiers", "tiers", views.tiers)
    add("/api/status", "status", views.status)
    add("/api/wake", "wake", views.wake, methods=["POST"])
    add("/healthz", "healthz", views.healthz)
    add("/readyz", "readyz", views.readyz)
    add("/metrics", "metrics", views.metrics)
    add("/node/hello", "hello", views.hello, methods=["POST"])
    add("/node/report", "report", views.report, methods=["POST"])
    app.register_blueprint(blueprint)
    app.register_error_handler(Problem, views.problem)
    app.register_error_handler(StoreUnavailable, views.store_lost)
    app.register_error_handler(HTTPException, views.http_error)
    app.register_error_handler(Exception, views.crash)
    app.after_request(_harden)
    return app


def _harden(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint == "static":
        response.headers["Cache-Control"] = "public, max-age=600"
    return response


class Views:
    """The views, one method each."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.config
        self._taken_back: deque[float] = deque(maxlen=TAKE_BACKS)

    # Who and what

    def _request(self) -> Request:
        return Request.of(request.environ["asgi.scope"], self._parts.trusted)

    def _gpu(self) -> tuple[str, GpuConfig]:
        scope = request.environ["asgi.scope"]
        name = request.args.get("gpu") or scope.get("qwenctl.gpu")
        try:
            name = name or gpu_of(self._config, self._request())
        except UnknownTier as error:
            raise Problem(400, "unknown_tier", str(error)) from None
        if name not in self._config.gpu:
            raise Problem(404, "no_such_gpu", "no such GPU is configured")
        return name, self._config.gpu[name]

    def _identity(self) -> Identity:
        identity = self._parts.authenticator.identify(self._request())
        if identity is None:
            raise Problem(401, "sign_in", "sign in with a browser, or send an API key")
        return identity

    def _texts(self) -> dict[str, Any]:
        lang = i18n.negotiate(request.headers.get("Accept-Language", ""), self._config.language)
        return {"lang": lang, "t": i18n.text(lang)}

    def _next(self) -> str:
        """Where to go afterwards: a path of this site, never another site's."""
        scope = request.environ["asgi.scope"]
        path = scope.get("qwenctl.original_path")
        if path is not None:
            query = scope.get("qwenctl.original_query", b"").decode("latin-1")
            target = f"{path}?{query}" if query else path
        else:
            target = request.values.get("next", "/")
        try:
            parts = urlsplit(target)
        except ValueError:
            return "/"
        safe = target.startswith("/") and not target.startswith(("//", "/\\"))
        safe = safe and target.isprintable()  # browsers drop tabs and line ends
        return target if safe and not parts.scheme and not parts.netloc else "/"

    # Pages

    def waiting(self) -> ResponseReturnValue:
        identity = self._parts.authenticator.identify(self._request())
        if identity is None:
            return self.sign_in()
        name, gpu = self._gpu()
        status = self._parts.feed.status(name, may_wake=may_wake(gpu, identity, by_page=True))
        tiers = self._tiers()
        body = render_template(
            "waiting.html",
            **self._texts(),
            gpu=name,
            status=status,
            next_url=self._next(),
            signed_in=identity.kind == "browser",
            tiers=tiers,
        )
        asked_for = "qwenctl.original_path" in request.environ["asgi.scope"]
        headers = {"Retry-After": str(max(2, round(status.get("eta_seconds") or 10)))}
        answer = make_response(body, 503 if asked_for else 200, headers if asked_for else {})
        if tiers and identity.kind == "anonymous" and not visit_slot(self._request()):
            # So that a choice takes back this visitor's wait, and not that of others.
            self._keep(answer, VISIT_COOKIE, secrets.choice(VISIT_SLOTS))
        return answer

    def _keep(self, answer: WSGIResponse, cookie: str, value: str) -> None:
        """Set a cookie that ends with the browser."""
        secure = self._request().proto == "https"
        answer.set_cookie(cookie, value, httponly=True, samesite="Lax", secure=secure)

    def sign_in(self) -> ResponseReturnValue:
        return redirect(url_for("control.login", next=self._next()), 303)

    def login(self) -> ResponseReturnValue:
        error, retry_after, status = "", None, 200
        texts = self._texts()
        if request.method == "POST":
            asked = self._request()
            if not asked.same_origin:
                raise Problem(403, "cross_site", "this form was sent by another site")
            try:
                cookie = self._parts.authenticator.sign_in(
                    request.form.get("password", "")[:1024], asked.client
                )
            except Throttled as throttled:
                retry_after, status = throttled.seconds, 429
            else:
                if cookie:
                    answer = redirect(self._next(), 303)
                    answer.set_cookie(
                        COOKIE,
                        cookie,
                        max_age=int(self._config.access.session),
                        httponly=True,
                        samesite="Lax",
                        secure=asked.proto == "https",
                    )
                    return answer
                error, status = texts["t"]["login.wrong"], 403
        body = render_template(
            "login.html",
            **texts,
            next_url=self._next(),
            error=error,
            retry_after=retry_after,
        )
        return body, status, {"Retry-After": str(round(retry_after))} if retry_after else {}

    def logout(self) -> ResponseReturnValue:
        if not self._request().same_origin:
            raise Problem(403, "cross_site", "this form was sent by another site")
        answer = redirect("/", 303)
        answer.delete_cookie(COOKIE)
        return answer

    # Tiers

    def _tiers(self, max_age: float | None = None) -> list[dict[str, Any]]:
        """What to say of each GPU of this host; nothing if there is no choice."""
        names = self._config.gpus_at(self._request().hostname)
        if len(names) < 2:
            return []
        feed, gpus = self._parts.feed, self._config.gpu
        return [
            tier_status(gpus[name].tier, feed.status(name, may_wake=True, max_age=max_age))
            for name in names
        ]

    def tiers(self) -> ResponseReturnValue:
        self._identity()
        return {"tiers": self._tiers(TIERS_AGE)}

    def tier(self) -> ResponseReturnValue:
        """The choice on a page of its own, for those whose GPU is ready, who see no waiting page."""
        if self._parts.authenticator.identify(self._request()) is None:
            return self.sign_in()
        tiers = self._tiers()
        if not tiers:
            raise Problem(404, "not_found", "there is only one GPU here")
        name, _ = self._gpu()
        return render_template(
            "tier.html", **self._texts(), gpu=name, tiers=tiers, next_url=self._next()
        )

    def choose_tier(self) -> ResponseReturnValue:
        asked, identity = self._request(), self._identity()
        if not asked.same_origin:
            raise Problem(403, "cross_site", "this form was sent by another site")
        names = self._config.gpus_at(asked.hostname)
        tier = request.form.get("tier", "")
        try:
            chosen = self._config.choose_gpu(names, tier=tier) if len(names) > 1 else ""
        except UnknownTier as error:
            raise Problem(400, "unknown_tier", str(error)) from None
        if not chosen or not tier:
            raise Problem(400, "unknown_tier", "no tier was chosen, or there is no choice here")
        if self._may_take_back(identity):
            for name in names:
                if name != chosen:
                    self._take_back(name, identity)
        answer = redirect(self._next(), 303)
        self._keep(answer, TIER_COOKIE, tier)
        return answer

    def _page_lease(self, identity: Identity) -> str:
        """The lease of this visitor's waiting page: his own, where he may choose among GPUs."""
        asked = self._request()
        slot = visit_slot(asked) if identity.kind == "anonymous" else ""
        chooses = slot and len(self._config.gpus_at(asked.hostname)) > 1
        return f"{identity.lease}#{slot}" if chooses else identity.lease

    def _may_take_back(self, identity: Identity) -> bool:
        """Whether the wait is this person's alone, as that of an address or key may not be; and
        seldom enough, from strangers, that their waits do not drive all else out of the history."""
        if identity.kind != "anonymous":
            return identity.kind == "browser"
        now, taken = time.monotonic(), self._taken_back
        if not visit_slot(self._request()) or (len(taken) == TAKE_BACKS and now - taken[0] < 60):
            return False
        taken.append(now)
        return True

    def _take_back(self, name: str, identity: Identity) -> None:
        """Let a GPU sleep that only this visitor's waiting page has asked for."""
        snapshot, mine = self._parts.store.snapshot(name), self._page_lease(identity)
        if not snapshot.phase.serves and any(
            lease.name == mine and lease.reason == "waiting page" for lease in snapshot.leases
        ):
            self._parts.store.release(
                name, only=mine, actor=identity.name, reason="another tier chosen"
            )

    # Waking

    def wake(self) -> ResponseReturnValue:
        name, identity = self._wake()
        gpu = self._config.gpu[name]
        status = self._parts.feed.status(
            name, may_wake=may_wake(gpu, identity, by_page=True), fresh=True
        )
        return status, 202

    def wake_form(self) -> ResponseReturnValue:
        self._wake()
        return redirect(self._next(), 303)

    def _wake(self) -> tuple[str, Identity]:
        asked = self._request()
        identity = self._identity()
        name, gpu = self._gpu()
        if identity.kind != "key" and not asked.same_origin:
            raise Problem(403, "cross_site", "another site must not wake the GPU")
        if not may_wake(gpu, identity, by_page=True):
            raise Problem(
                403,
                "may_not_wake",
                "this GPU is woken by API keys, schedules and `qwenctl up` only",
            )
        admission = self._parts.store.demand(
            name,
            self._page_lease(identity),
            gpu.idle_timeout + gpu.boot_estimate,
            reason="waiting page" if asked.from_browser else "wake request",
            actor=identity.name,
        )
        if admission.blocked_by:
            raise Problem(423, "blocked", f"the GPU is blocked by {admission.blocked_by}")
        return name, identity

    def status(self) -> ResponseReturnValue:
        identity = self._identity()
        name, gpu = self._gpu()
        return self._parts.feed.status(name, may_wake=may_wake(gpu, identity, by_page=True))

    # Health

    def healthz(self) -> ResponseReturnValue:
        """Alive. Says nothing of the store or of any GPU."""
        return {"status": "ok", "version": __version__}

    def readyz(self) -> ResponseReturnValue:
        """Able to do its work: the store answers."""
        self._parts.store.ping()
        return {"status": "ok"}

    def metrics(self) -> ResponseReturnValue:
        asked = self._request()
        if self._parts.authenticator.identify(asked) is None and not asked.peer_is_loopback:
            raise Problem(401, "sign_in", "metrics need an API key, or a scraper on this machine")
        for name in self._config.gpu:
            snapshot = self._parts.store.snapshot(name)
            self._parts.metrics.observe(snapshot, self._parts.usage.in_flight(name))
            history = [w for w in wakes(self._parts.store.events(name, 200)) if w.durations]
            for step, seconds in (history[-1].durations if history else {}).items():
                self._parts.metrics.step_seconds.labels(name, step).set(seconds)
        return Response(self._parts.metrics.text(), mimetype="text/plain; version=0.0.4")

    # The node

    def hello(self) -> ResponseReturnValue:
        return self._node(wire.HELLO_PATH)

    def report(self) -> ResponseReturnValue:
        return self._node(wire.REPORT_PATH)

    def _node(self, path: str) -> ResponseReturnValue:
        status, body, headers = self._parts.desk.take(
            path, request.get_data(), dict(request.headers)
        )
        return body, status, {"Content-Type": "application/json", **headers}

    # Errors

    def told(self) -> ResponseReturnValue:
        """What the data plane has to say to somebody who opened a page."""
        told = request.environ["asgi.scope"].get("qwenctl.problem")
        raise Problem(*told) if told else Problem(404, "not_found", "there is no such page")

    def problem(self, error: Problem) -> ResponseReturnValue:
        return self._error(error.status, error.code, error.detail, error.retry_after)

    def store_lost(self, error: StoreUnavailable) -> ResponseReturnValue:
        log.warning("%s", error)
        return self._error(
            503,
            "store_lost",
            "the proxy cannot reach its store; nothing is started or stopped",
            5.0,
        )

    def http_error(self, error: HTTPException) -> ResponseReturnValue:
        code = (error.name or "error").lower().replace(" ", "_")
        return self._error(error.code or 500, code, error.description or error.name, shown=False)

    def crash(self, _error: Exception) -> ResponseReturnValue:
        reference = secrets.token_hex(4)
        log.exception("a request to %s failed (reference %s)", request.path, reference)
        return self._error(
            500, "internal", f"something went wrong in the proxy (reference {reference})"
        )

    def _error(
        self,
        status: int,
        code: str,
        detail: str,
        retry_after: float | None = None,
        *,
        shown: bool = True,
    ) -> ResponseReturnValue:
        """``shown``: whether a page says the detail too; Flask's own say nothing that helps."""
        headers = {"Retry-After": str(max(1, round(retry_after)))} if retry_after else {}
        html = self._request().is_navigation
        if status == 401 and html:
            return self.sign_in()
        if html:
            texts = self._texts()
            table = texts["t"]
            in_place = "qwenctl.original_path" in request.environ["asgi.scope"]
            again = {"url": self._next(), "label": table["message.retry"]}
            body = render_template(
                "message.html",
                **texts,
                title=table.get(f"message.{status}.title", table["message.title"]),
                text=table.get(f"message.{status}.text", detail),
                detail=detail if shown else "",
                link=again if in_place and status >= 500 else None,
            )
            return body, status, headers
        headers["Content-Type"] = "application/problem+json; charset=utf-8"
        return problem_body(status, code, detail), status, headers
