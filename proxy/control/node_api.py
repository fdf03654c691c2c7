"""Receive messages of nodes: verify, record, answer with the services to run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, cast

from pydantic import ValidationError

from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.core import leases
from qwenctl.core.refusals import MALFORMED, SECRET
from qwenctl.errors import StoreUnavailable
from qwenctl.protocol import messages, signing
from qwenctl.store.store import Store

from ..http.metrics import Metrics
from ..http.problem import send_problem
from ..http.request import Receive, Request, Scope, Send, send_answer
from .pages import crashed

log = logging.getLogger("qwenctl.node")

LOG_INTERVAL = 10.0
"""How often refused messages of the same kind are logged, with their number, in seconds."""


TELL_INTERVAL = 1.0
"""The shortest time between two refusals that are written down, in seconds."""


Reply = tuple[int, bytes, dict[str, str]]
"""Status, body and headers."""


class NodeApi:
    """An ASGI application that verifies messages and records them.

    Signatures are verified on the event loop, so that a flood of forged messages takes no threads;
    the store is called in threads.
    """

    PATHS = frozenset((messages.HELLO_PATH, messages.REPORT_PATH))

    def __init__(
        self,
        config: Config,
        store: Store,
        metrics: Metrics,
        in_flight: Callable[[str], int] = lambda _: 0,
        clock: Callable[[], float] = time.time,
        *,
        removed: Mapping[str, GpuConfig] = MappingProxyType({}),
    ) -> None:
        """``removed``: GPUs that the settings no longer have, while their instances are stopped."""
        self._secret = config.usable_node_secret()
        self._gpus: Mapping[str, GpuConfig] = ChainMap(config.gpu, cast(Any, removed))
        """The configuration's first, as a `ChainMap` looks."""
        self._store = store
        self._metrics = metrics
        self._in_flight = in_flight
        self._clock = clock
        self._specs = {name: gpu.spec for name, gpu in config.gpu.items()}
        self._told = float("-inf")
        self._refusals: dict[tuple[str, str], tuple[float, int]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="node")

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a message, whose whole body `BoundedBody` has read."""
        request = Request.of(scope, ())
        if request.method != "POST":
            await send_problem(request, send, 405, "method_not_allowed", "nodes POST here")
            return
        path, body = scope["path"], (await receive()).get("body", b"")
        headers = {name.title(): value for name, value in request.headers.items()}
        reply = self.refuse_forged(path, body, headers)
        if reply is not None and self._may_tell():
            peer = (scope.get("client") or ("",))[0]
            asyncio.get_running_loop().run_in_executor(
                self._threads, self.tell_refused, SECRET, body, peer
            )
        if reply is None:
            loop = asyncio.get_running_loop()
            try:
                reply = await loop.run_in_executor(self._threads, self.record, path, body, headers)
            except Exception:
                problem = crashed(path)
                await send_problem(request, send, problem.status, problem.code, problem.detail)
                return
        status, content, signature = reply
        answer_headers = {"Content-Type": "application/json", **signature}
        await send_answer(request, send, status, answer_headers, content)

    def refuse_forged(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply | None:
        """Return the refusal of a message without a valid, fresh signature; else None."""
        try:
            signing.check_message(self._secret, "POST", path, body, headers, now=self._clock())
        except signing.BadSignature as error:
            return self._signed(headers, *self._refuse(401, "?", "bad_signature", str(error)))
        except signing.Stale as error:
            return self._signed(headers, *self._refuse(401, "?", "stale", str(error)))
        return None

    def record(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Record a message whose signature is valid; return the answer."""
        return self._signed(headers, *self._record(path, body, headers[signing.NONCE_HEADER]))

    def _signed(self, headers: Mapping[str, str], status: int, answer: messages.Answer) -> Reply:
        content = answer.model_dump_json().encode()
        nonce = headers.get(signing.NONCE_HEADER, "")
        return status, content, signing.sign_answer(self._secret, nonce, status, content)

    def _record(self, path: str, body: bytes, nonce: str) -> tuple[int, messages.Answer]:
        try:
            message = (
                messages.Hello.model_validate_json(body)
                if path == messages.HELLO_PATH
                else messages.Report.model_validate_json(body)
            )
        except ValidationError as error:
            problem = _first(error)
            if self._may_tell():
                self.tell_refused(MALFORMED, body, "", problem)
            return self._refuse(400, "?", "malformed", f"not a message: {problem}")
        gpu = self._gpus.get(message.gpu)
        if gpu is None:
            return self._refuse(404, "?", "no_such_gpu", f"no GPU named {message.gpu!r}")
        if not gpu.agent:
            why = (
                f"gpu.{message.gpu} is used without an agent (agent = false), but one reports: "
                "uninstall it on the instance, or remove that setting"
            )
            return self._refuse(409, message.gpu, "agentless", why)
        try:
            if isinstance(message, messages.Hello):
                return self._hello(message, nonce, gpu)
            return self._report(message, nonce, gpu)
        except StoreUnavailable as error:
            log.warning("%s: a message cannot be recorded: %s", message.gpu, error)
            if isinstance(message, messages.Report) and self._in_flight(message.gpu):
                # Requests are forwarded to this node: answer, so that it does not stop itself.
                return 200, self._answer(start_seq=message.start_seq)
            return 503, self._answer(refused="the proxy has lost its store")

    def _hello(
        self, hello: messages.Hello, nonce: str, gpu: GpuConfig
    ) -> tuple[int, messages.Answer]:
        verdict, seq = self._store.hello(hello, nonce, heartbeat=gpu.timing.heartbeat)
        if verdict == "ok":
            self._count(hello.gpu, "hello")
            log.info(
                "%s: hello of boot %s (agent %s)", hello.gpu, hello.boot_id, hello.agent_version
            )
            unneeded_for = self._store.unneeded_for(hello.gpu, hello.boot_id)
            return 200, self._answer(
                start_seq=seq, spec=self._specs.get(hello.gpu), unneeded_for=unneeded_for
            )
        why = {
            "replay": "this message was received before",
            "earlier_boot": f"boot {hello.boot_id} has ended; the instance must boot anew",
            "unexpected": "this GPU should be off, or another instance of it is there; the controller is looking",
        }[verdict]
        status, answer = self._refuse(409, hello.gpu, verdict, why)
        return status, answer.model_copy(update={"hello_again": verdict == "unexpected"})

    def _report(
        self, report: messages.Report, nonce: str, gpu: GpuConfig
    ) -> tuple[int, messages.Answer]:
        verdict, seq, commands = self._store.report(report, nonce, heartbeat=gpu.timing.heartbeat)
        if verdict == "ok":
            self._count(report.gpu, "report")
            spec = self._specs.get(report.gpu)  # None: removed, so it runs on until its stop
            # The agent delays a change for the work it sees; the proxies see more.
            if spec and (report.spec_version == spec.version or self._forwards(report.gpu)):
                spec = None
            return 200, self._answer(
                start_seq=seq,
                spec=spec,
                commands=commands,
                unneeded_for=self._store.unneeded_for(report.gpu, report.boot_id),
            )
        if verdict == "replay":
            return self._refuse(409, report.gpu, verdict, "this message was received before")
        why = f"boot {report.boot_id} is not the one that said hello after start {seq}"
        status, answer = self._refuse(409, report.gpu, verdict, why)
        return status, answer.model_copy(update={"hello_again": True})

    def _forwards(self, gpu: str) -> bool:
        """Return whether requests are in flight in any proxy, such as one that shuts down."""
        return bool(self._in_flight(gpu)) or any(
            lease.kind == leases.INFLIGHT for lease in self._store.snapshot(gpu).leases
        )

    def _answer(
        self,
        *,
        start_seq: int = 0,
        spec: messages.Spec | None = None,
        commands: tuple[messages.Command, ...] = (),
        refused: str = "",
        unneeded_for: float = 0.0,
    ) -> messages.Answer:
        return messages.Answer(
            server_time=self._clock(),
            start_seq=start_seq,
            spec=spec,
            commands=commands,
            refused=refused,
            unneeded_for=unneeded_for,
        )

    def _refuse(self, status: int, gpu: str, code: str, why: str) -> tuple[int, messages.Answer]:
        self._count(gpu, code)
        now = time.monotonic()
        last, held_back = self._refusals.get((gpu, code), (float("-inf"), 0))
        if now - last >= LOG_INTERVAL:
            more = f" ({held_back} more like it since)" if held_back else ""
            log.warning("a node's message was refused (%s): %s%s", code, why, more)
            self._refusals[gpu, code] = (now, 0)
        else:
            self._refusals[gpu, code] = (last, held_back + 1)
        return status, self._answer(refused=why)

    def _may_tell(self) -> bool:
        """Whether a refusal may be written down: rarely, as anybody can cause them."""
        now = time.monotonic()
        due = now - self._told >= TELL_INTERVAL
        if due:
            self._told = now
        return due

    def tell_refused(self, code: str, body: bytes, peer: str, why: str = "") -> None:
        """Write down for which GPU a message was refused; never raises."""
        with contextlib.suppress(StoreUnavailable):
            for gpu in self._meant(body, peer):
                self._store.refused_agent(gpu, code, peer, why)

    def _meant(self, body: bytes, peer: str) -> list[str]:
        """Return the GPU that a refused message names, or that its sender's address is of."""
        try:
            name = json.loads(body).get("gpu")
        except (ValueError, AttributeError, RecursionError):
            name = None
        if isinstance(name, str) and name in self._gpus:
            return [name] if self._gpus[name].agent else []
        known = [gpu for gpu in self._gpus if peer and self._gpus[gpu].agent]
        return [gpu for gpu in known if self._store.snapshot(gpu).address == peer]

    def _count(self, gpu: str, outcome: str) -> None:
        self._metrics.callbacks.labels(gpu, outcome).inc()


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return json.dumps(f"{where}: {problem['msg']}"[:200])
