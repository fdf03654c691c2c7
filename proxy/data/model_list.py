"""Answer ``GET /v1/models`` for GPUs that sleep, from the settings and the last list of each node.

Front ends ask for the models before anything else, and it must not take a GPU to tell them. Entries
that no node has just told carry a member ``qwenctl``, which SDKs ignore.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from qwenctl.config.deployment import Config
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..http.request import Message, Request, Send, send_answer
from .exchange import Exchange
from .listening import ask_plainly
from .model_finder import asked_tier

PATH = "/v1/models"

MAX_BYTES = 256 * 1024
"""The longest answer of a node that is read for its models, in bytes."""

MAX_MODELS = 256
"""How many models of a node are remembered."""

MAX_TEXT = 512
"""The longest text of an entry, in characters, its name included."""

READ_AGAIN = 5.0
"""How long what the store remembers is taken for the present, in seconds."""

FETCH_SECONDS = 10.0
"""How long a node may take to answer when the proxy itself asks it for its models, in seconds."""

Entry = dict[str, Any]


def asked_model(request: Request) -> str | None:
    """Return the model that a request asks about; empty: for all, None: it is another request."""
    if request.method not in ("GET", "HEAD"):
        return None
    path = request.path.rstrip("/")
    if path == PATH:
        return ""
    return path[len(PATH) + 1 :] if path.startswith(f"{PATH}/") else None


class ModelLists:
    """Knows the models of each GPU. Used on the event loop only."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._seen: dict[str, list[Entry]] = {}
        self._read_at: dict[str, float] = {}
        self._asked: dict[str, int] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="models")

    async def stop(self) -> None:
        for task in self._asking.values():
            task.cancel()
        self._threads.shutdown(wait=False)

    async def answer(self, exchange: Exchange) -> bool:
        """Answer a request for models in place of the node; return False if none is known."""
        model = asked_model(exchange.request)
        if model is None:
            return False
        entries = await self.of(self._names(exchange))
        if not entries:
            return False
        if not model:
            content: Any = {"object": "list", "data": entries, "qwenctl": {"remembered": True}}
        elif (found := self._find(model, entries, exchange)) is not None:
            content = found
        else:
            detail = f"the model {model[:MAX_TEXT]!r} does not exist"
            await exchange.problem(404, "model_not_found", detail)
            return True
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Qwenctl-Models": "remembered",
        }
        body = json.dumps(content, ensure_ascii=False).encode()
        await send_answer(exchange.request, exchange.send, 200, headers, body)
        return True

    async def send_for(self, exchange: Exchange) -> Send:
        """Return the ``send`` for a node's answer: a list is remembered, and completed by other tiers'."""
        if asked_model(exchange.request) != "" or exchange.request.method != "GET":
            return exchange.send
        ask_plainly(exchange)
        others = [name for name in self._names(exchange) if name != exchange.name]
        more = await self.of(others)
        gpu = exchange.name
        return _ListSend(exchange.send, lambda seen: self._learn(gpu, seen), more)

    def ask_node(self, exchange: Exchange, fetch: Callable[[], Awaitable[bytes]]) -> None:
        """Ask a node for its list, once a start, as it serves a client that may never do so."""
        if exchange.request.method != "POST" or "/v1/" not in exchange.request.path:
            return
        gpu, start_seq = exchange.name, exchange.view.snapshot.start_seq
        if self._asked.get(gpu) == start_seq:
            return
        self._asked[gpu] = start_seq

        async def ask() -> None:
            self._learn(gpu, await fetch())

        self._asking[gpu] = asyncio.create_task(ask())

    async def of(self, names: Iterable[str]) -> list[Entry]:
        """Return the models of these GPUs, each once."""
        names = list(names)
        await asyncio.gather(*(self._read(name) for name in names))
        found: dict[str, Entry] = {}
        for name in names:
            for entry in (*self._seen.get(name, ()), *self._configured(name)):
                found.setdefault(entry["id"], entry)
        return list(found.values())

    def _names(self, exchange: Exchange) -> Sequence[str]:
        """Return the GPUs that this visitor's request may be for, the present choice first."""
        names = self._config.gpus_at(exchange.request.hostname)
        if asked_tier(exchange.request) or exchange.name not in names:
            return [exchange.name]
        return [exchange.name, *(name for name in names if name != exchange.name)]

    def _find(self, model: str, entries: Sequence[Entry], exchange: Exchange) -> Entry | None:
        for entry in entries:
            if entry["id"] == model:
                return entry
        for name in self._names(exchange):
            if any(fnmatchcase(model, pattern) for pattern in self._config.gpu[name].models):
                return _entry(model, name, "settings")
        return None

    def _configured(self, name: str) -> list[Entry]:
        return [_entry(model, name, "settings") for model in self._config.gpu[name].model_names]

    def _learn(self, name: str, body: bytes) -> list[Entry]:
        """Remember the list in a node's answer; return its entries as they are."""
        raw = _entries(body)
        seen = [_marked(entry, name) for entry in raw[:MAX_MODELS]]
        seen = [entry for entry in seen if entry["id"]]
        if seen and seen != self._seen.get(name):
            self._seen[name], self._read_at[name] = seen, time.monotonic()
            text = json.dumps({"spec": self._config.gpu[name].spec.version, "data": seen})
            with suppress(RuntimeError):  # shutting down
                self._threads.submit(self._write, name, text)
        return raw

    def _write(self, name: str, text: str) -> None:
        with suppress(StoreUnavailable):
            self._store.remember_models(name, text)

    async def _read(self, name: str) -> None:
        """Read what another replica, or this one before a restart, has seen."""
        if time.monotonic() - self._read_at.get(name, float("-inf")) < READ_AGAIN:
            return
        self._read_at[name] = time.monotonic()
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, self._store.models, name)
        with suppress(StoreUnavailable, RuntimeError, ValueError, asyncio.TimeoutError):
            kept = json.loads(await asyncio.wait_for(asyncio.shield(reading), 1.0) or "{}")
            # Other settings of the services may serve other models.
            if kept.get("spec") == self._config.gpu[name].spec.version:
                self._seen[name] = list(kept["data"])


def _entry(model: str, gpu: str, source: str) -> Entry:
    """Return an entry of the list as the OpenAI API has it."""
    about = {"gpu": gpu, "source": source}
    return {"id": model, "object": "model", "created": 0, "owned_by": "qwenctl", "qwenctl": about}


def _marked(entry: Entry, gpu: str) -> Entry:
    """Return what is remembered of a node's entry: its plain members, marked as remembered."""
    plain = {
        key: value
        for key, value in entry.items()
        if value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and len(value) <= MAX_TEXT)
    }
    name = plain.get("id")
    made = _entry(name if isinstance(name, str) else "", gpu, "last seen")
    return {**made, **plain, "id": made["id"], "qwenctl": made["qwenctl"]}


def _entries(body: bytes) -> list[Entry]:
    """Return the entries of a list of models; none if it is no such list."""
    try:
        data = json.loads(body)["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


class _ListSend:
    """A ``send`` that keeps a node's list of models back until it is whole, and completes it."""

    def __init__(
        self, send: Send, learn: Callable[[bytes], list[Entry]], more: Sequence[Entry]
    ) -> None:
        self._send, self._learn, self._more = send, learn, more
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if message["status"] == 200 and kind.lower().startswith(b"application/json"):
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body") and len(self._body) <= MAX_BYTES:
                return
            await self._flush(whole=not message.get("more_body"))
            message = {**message, "body": self._body}
            self._body = b""
        await self._send(message)

    async def _flush(self, *, whole: bool) -> None:
        start, self._start = self._start, None
        assert start is not None
        if whole and (entries := self._learn(self._body)):
            known = {entry.get("id") for entry in entries}
            more = [entry for entry in self._more if entry["id"] not in known]
            if more:
                content = json.loads(self._body)
                content["data"] = [*content["data"], *more]
                self._body = json.dumps(content, ensure_ascii=False).encode()
                dropped = (b"content-length", b"etag", b"content-md5", b"digest")
                kept = [pair for pair in start["headers"] if pair[0].lower() not in dropped]
                length = (b"content-length", str(len(self._body)).encode())
                marked = (b"x-qwenctl-models", b"merged")
                start = {**start, "headers": [*kept, length, marked]}
        await self._send(start)
