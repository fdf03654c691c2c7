"""Find the model that an API request names, by reading ahead in its body."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence

from qwenctl.config.deployment import Config
from qwenctl.core.rules import Activity

from ..http.request import Receive, Request
from .headers import TIER_HEADER
from .request_buffer import READ_AHEAD, ReadAheadBudget, RequestBuffer

MIB = 1 << 20

MAX_AHEAD = 16 * MIB
"""How much of a body is searched for the model, in bytes. The model is not always near the
beginning: a common client library writes the messages first, with pictures of megabytes in them."""

MAX_AHEAD_IN_ALL = 128 * MIB
"""How much all requests together may have read ahead, in bytes; beyond it, nothing is read after the
first `READ_AHEAD` bytes of a body, and beyond twice as much nothing at all."""

READ_SECONDS = 300.0
"""How long a client may take to send what is searched, in seconds."""


class TooMuchAhead(Exception):
    """Searching a body for its model would take too much memory or time."""


def asked_tier(request: Request) -> str:
    """Return the tier that the request's header names, or an empty text."""
    return request.headers.get(TIER_HEADER, "").strip().lower()


class Models:
    """Find the model that an API request is for."""

    def __init__(self, config: Config, in_all: ReadAheadBudget | None = None) -> None:
        self._config = config
        self._in_all = in_all or ReadAheadBudget()

    def matters(self, names: Sequence[str], request: Request) -> bool:
        """Return whether the body decides which of these GPUs the request is for."""
        headers = request.headers
        return (
            request.method == "POST"
            and not asked_tier(request)
            and headers.get("content-type", "").partition(";")[0].strip().lower()
            == "application/json"
            and headers.get("content-encoding", "identity").lower() == "identity"
            and any(self._config.gpu[name].models for name in names)
            and ("/v1/" in request.path or self._infers(names[0], request))
        )

    def _infers(self, name: str, request: Request) -> bool:
        """Return whether a model server takes the request for inference, such as ``/rerank``."""
        gpu = self._config.gpu[name]
        if gpu.preset != "openai":
            return False
        return gpu.rule_table.classify("POST", request.path, request.headers) is Activity.WAKES

    async def read(self, request: Request, receive: Receive) -> tuple[str, RequestBuffer]:
        """Return the model that the body names, or empty, and the buffer that replays the body.

        Raises:
            ClientGone: the client has hung up.
            TooMuchAhead: the memory for it is taken.
        """
        held = RequestBuffer(request, receive, self._in_all)
        try:
            return await self._look_through(held), held
        except BaseException:
            held.close()
            raise

    async def _look_through(self, held: RequestBuffer) -> str:
        finder = ModelFinder()
        began = time.monotonic()
        while not finder.done and held.ahead < MAX_AHEAD:
            most = MAX_AHEAD_IN_ALL if held.ahead > READ_AHEAD else 2 * MAX_AHEAD_IN_ALL
            if self._in_all.bytes > most:
                raise TooMuchAhead
            left = began + READ_SECONDS - time.monotonic()
            try:
                piece = await asyncio.wait_for(held.read_more(), max(0.0, left))
            except asyncio.TimeoutError:
                raise TooMuchAhead from None
            if piece is None:
                break
            finder.feed(piece)
            if finder.tired:
                raise TooMuchAhead
        return finder.model


class ModelFinder:
    """Find the value of the key ``model`` of a JSON object that comes in pieces.

    Only keys of the outermost object count, and the first if there are several. Anything else than
    a JSON object with such a text has no model. Never raises.
    """

    MAX_NAME = 512
    """The longest name of a model, in bytes."""
    MAX_STEPS = 200_000
    """The most marks and texts to look at: a tenth of a second, many times those of a chat."""

    def __init__(self) -> None:
        self.model = ""
        """The model, once found."""
        self.done = False
        """Whether the rest of the body does not matter."""
        self.tired = False
        """Whether the search has been given up, because it would delay all other requests."""
        self._steps = 0
        self._depth = 0
        self._text: bytes | None = None  # the text at the end of the last piece
        self._escape = b""  # a backslash at the end of a piece
        self._key: bytes | None = None  # the key whose value may come next

    def feed(self, piece: bytes) -> None:
        """Search the next piece."""
        piece, self._escape = self._escape + piece, b""
        at = 0
        while at < len(piece) and not self.done:
            self._steps += 1
            if self._steps > self.MAX_STEPS:
                self.tired = self.done = True
                return
            if self._text is None:
                found = (_MARK if self._depth < 2 else _NESTED_MARK).search(piece, at)
                if found is None:
                    return
                at = found.end()
                self._mark(found.group())
                continue
            rest = _REST_OF_TEXT.match(piece, at)
            assert rest is not None  # it matches nothing, too
            end = rest.end()
            if self._depth == 1 and len(self._text) <= self.MAX_NAME:
                self._text += piece[at : min(end, at + self.MAX_NAME + 1)]
            if end < len(piece) and piece[end] == ord('"'):
                self._text_ends(self._text)
            else:
                self._escape = piece[end:]
            at = end + 1

    def _mark(self, mark: bytes) -> None:
        if self._depth == 0 and mark != b"{":
            self.done = True
        elif mark == b'"':
            self._text = b""
        elif mark in b"{[":
            self._depth += 1
        elif mark in b"}]":
            self._depth -= 1
            self.done = self._depth == 0
        elif mark == b",":
            self._key = None

    def _text_ends(self, text: bytes) -> None:
        self._text = None
        if self._depth != 1:
            return
        if self._key is None:
            self._key = text
        elif _plain(self._key) == "model" and len(text) <= self.MAX_NAME:
            self.model = _plain(text)
            self.done = True


_MARK = re.compile(rb'["{}\[\],]')
_NESTED_MARK = re.compile(rb'["{}\[\]]')
"""Marks that matter outside of texts. A text after a text without a comma is a key's value."""

_REST_OF_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
"""A text up to the quote that ends it, or to the end of the piece or a backslash there."""


def _plain(text: bytes) -> str:
    """Decode a JSON text without its quotes; return an empty text if it is invalid."""
    try:
        return str(json.loads(f'"{text.decode()}"'))
    except ValueError:
        return ""
