"""Health and metrics, for load balancers and Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from flask import Response
from flask.typing import ResponseReturnValue

from qwenctl import __version__
from qwenctl.core.wakes import wakes

from ..http.problem import Problem
from .views import Route, Views

__all__ = ["Health"]


class Health(Views):
    """Views for machines that watch the proxy."""

    def routes(self) -> Iterable[Route]:
        return (
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
        )

    def healthz(self) -> ResponseReturnValue:
        """Answer while the process lives, whatever the store and the GPUs do."""
        return {"status": "ok", "version": __version__}

    def readyz(self) -> ResponseReturnValue:
        """Answer while the store answers."""
        self._services.store.ping()
        return {"status": "ok"}

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
