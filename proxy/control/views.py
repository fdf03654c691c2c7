"""What all Flask views share: who asks, about which GPU, and where to go afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flask import Response, make_response, request
from flask.typing import ResponseReturnValue

from qwenctl.config.deployment import UnknownTier

from ..auth.identity import Identity
from ..data.routing import gpu_of
from ..data.services import Services
from ..http.cookies import set_cookie
from ..http.problem import Problem
from ..http.request import Request
from .pages import Page, safe_path

__all__ = ["Route", "Views"]

Route = tuple[str, str, Callable[[], ResponseReturnValue]]
"""Method, path below the prefix, view."""


class Views:
    """A group of Flask views."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._config = services.config

    def routes(self) -> Iterable[Route]:
        """Return the group's routes."""
        return ()

    @property
    def request(self) -> Request:
        return Request.of(request.environ["asgi.scope"], self._services.trusted)

    @property
    def identity(self) -> Identity:
        """The visitor.

        Raises:
            Problem: 401, the visitor must sign in first.
        """
        identity = self.visitor
        if identity is None:
            raise Problem(401, "sign_in", "sign in with a browser, or send an API key")
        return identity

    @property
    def visitor(self) -> Identity | None:
        return self._services.authenticators.identify(self.request)

    @property
    def gpu(self) -> str:
        """The GPU that the request is about.

        Raises:
            Problem: there is no such GPU or tier.
        """
        try:
            name = request.args.get("gpu") or gpu_of(self._config, self.request)
        except UnknownTier as error:
            raise Problem(400, "unknown_tier", str(error)) from None
        if name not in self._config.gpu:
            raise Problem(404, "no_such_gpu", "no such GPU is configured")
        return name

    @property
    def target(self) -> str:
        """The path of this site to go to afterwards."""
        return safe_path(request.values.get("next", "/"))

    def check_origin(self, detail: str = "this form was sent by another site") -> None:
        """Refuse what another site made a browser send.

        Raises:
            Problem: 403.
        """
        if not self.request.same_origin:
            raise Problem(403, "cross_site", detail)

    def answer(self, page: Page) -> Response:
        """Return a page as Flask's response."""
        return make_response(page.body, page.status, page.headers)

    def redirect(
        self, target: str = "", *, cookie: str = "", value: str = "", seconds: float | None = None
    ) -> Response:
        """Return a redirect to ``target``, or else to `target`, which sets a cookie."""
        headers = {"Location": target or self.target}
        if cookie:
            headers["Set-Cookie"] = set_cookie(self.request, cookie, value, seconds)
        return make_response("", 303, headers)
