"""The Flask application under ``/_qwenctl/``: short requests, which may touch Redis, never the cloud.

What holds a connection open for long is in `status_stream`: it must not hold a Flask thread.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from qwenctl.errors import StoreUnavailable

from ..data.services import Services
from ..data.waiting import WaitingPages
from ..http.problem import Problem
from .api import Api
from .forms import Forms
from .health import Health
from .pages import PREFIX, SECURITY_HEADERS, Pages, crashed, store_lost
from .status_stream import StatusStream
from .views import Views

__all__ = ["make_flask"]


def make_flask(
    services: Services, stream: StatusStream, pages: Pages, waiting: WaitingPages
) -> Flask:
    """Return the application with all its routes."""
    folder = Path(__file__).parents[1] / "static"
    app = Flask(__name__, static_folder=folder, static_url_path=f"{PREFIX}/static")
    views: list[Views] = [
        Forms(services, pages, waiting),
        Api(services, stream, pages, waiting),
        Health(services),
    ]
    for part in views:
        for method, path, view in part.routes():
            app.add_url_rule(f"{PREFIX}{path}", f"{method} {path}", view, methods=[method])
    errors = _Errors(services, pages)
    app.register_error_handler(Problem, errors.problem)
    app.register_error_handler(StoreUnavailable, errors.store_lost)
    app.register_error_handler(HTTPException, errors.http_error)
    app.register_error_handler(Exception, errors.crash)
    app.after_request(_harden)
    return app


def _harden(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint == "static":
        response.headers["Cache-Control"] = "public, max-age=600"
    return response


class _Errors(Views):
    """Answers to exceptions: a page for a person, problem+json for everybody else."""

    def __init__(self, services: Services, pages: Pages) -> None:
        super().__init__(services)
        self._pages = pages

    def problem(self, error: Problem, *, shown: bool = True) -> ResponseReturnValue:
        asked = self.request
        if not asked.is_navigation:
            headers = {"Content-Type": "application/problem+json; charset=utf-8", **error.headers}
            return make_response(error.body, error.status, headers)
        if error.status == 401:
            return self.answer(self._pages.to_login(self.target))
        return self.answer(self._pages.problem_page(asked, error, shown=shown))

    def store_lost(self, error: StoreUnavailable) -> ResponseReturnValue:
        return self.problem(store_lost(error))

    def http_error(self, error: HTTPException) -> ResponseReturnValue:
        code = (error.name or "error").lower().replace(" ", "_")
        problem = Problem(error.code or 500, code, error.description or error.name)
        return self.problem(problem, shown=False)  # Flask's own detail says nothing that helps

    def crash(self, _error: Exception) -> ResponseReturnValue:
        return self.problem(crashed(request.path))
