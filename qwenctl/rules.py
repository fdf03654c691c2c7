"""What counts as use: an ordered table of rules that sorts each request into one of four classes.

Pure. First match wins. The presets rest on what Chromium really sends (DESIGN §5): an idle Gradio
tab holds one ``GET /gradio_api/heartbeat/…`` with a data event every 15 s, and a message is
``POST …/queue/join`` followed by ``GET …/queue/data``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["PRESETS", "Activity", "Rule", "RuleTable", "classify"]


class Activity(str, Enum):
    """What a request does to the GPU.

    ========  ===============  ==================================  ==============
    class     starts it        keeps it on                         is held
    ========  ===============  ==================================  ==============
    wakes     yes              while in flight + idle timeout      until ready
    keeps_on  no               while in flight + idle timeout      no
    messages  no               each data message + idle timeout    no
    passive   no               no                                  no
    refused   no               answered with 403                   no
    ========  ===============  ==================================  ==============
    """

    WAKES = "wakes"
    KEEPS_ON = "keeps_on"
    MESSAGES = "messages"
    PASSIVE = "passive"
    REFUSED = "refused"


class Rule(BaseModel):
    """One row of the table; every condition that is given must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    activity: Literal["wakes", "keeps_on", "messages", "passive", "refused"]
    """The class of a request that matches."""
    methods: tuple[str, ...] = ()
    """HTTP methods in capitals; ``WEBSOCKET`` for WebSocket handshakes; none: all."""
    path: str = ""
    """A regular expression searched in the path (anchor it with ^ and $); empty: all."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Header name → regular expression searched in its value; a missing header is empty."""

    @field_validator("path")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @field_validator("headers")
    @classmethod
    def _compile_too(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value.values():
            cls._compiles(pattern)
        return {name.lower(): pattern for name, pattern in value.items()}

    def matches(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Whether all conditions hold. Header names in ``headers`` are lower case."""
        if self.methods and method not in self.methods:
            return False
        if self.path and not _compiled(self.path).search(path):
            return False
        return all(
            _compiled(pattern).search(headers.get(name, ""))
            for name, pattern in self.headers.items()
        )


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class RuleTable:
    """Rules in order, sorted out by method beforehand: this runs for every request."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._by_method: dict[str, tuple[Rule, ...]] = {}
        self.refuses = any(rule.activity == "refused" for rule in rules)
        """Whether any rule refuses requests."""

    def classify(self, method: str, path: str, headers: Mapping[str, str]) -> Activity:
        """The class of a request; what no rule matches is passive."""
        rules = self._by_method.get(method)
        if rules is None:
            rules = tuple(r for r in self._rules if not r.methods or method in r.methods)
            if len(self._by_method) < 64:  # clients may invent methods
                self._by_method[method] = rules
        for rule in rules:
            if rule.matches(method, path, headers):
                return Activity(rule.activity)
        return Activity.PASSIVE


def classify(
    rules: tuple[Rule, ...], method: str, path: str, headers: Mapping[str, str]
) -> Activity:
    """The class of one request; what no rule matches is passive."""
    return RuleTable(rules).classify(method, path, headers)


_BROWSER_NAVIGATION = Rule(
    activity="keeps_on",
    methods=("GET",),
    headers={
        "sec-fetch-mode": "^navigate$",
        "sec-fetch-user": r"^\?1$",
        "sec-purpose": "^$",
        "purpose": "^$",
    },
)
"""Somebody opened a page. Only browsers send these headers; a page that reloads itself lacks
Sec-Fetch-User, a prefetch adds a purpose."""

_LAST = (
    _BROWSER_NAVIGATION,
    Rule(activity="passive", methods=("GET", "HEAD", "OPTIONS")),
    Rule(activity="messages", methods=("WEBSOCKET",)),
)

_GRADIO = (
    # A tab whose answer broke off asks for app_id until the app is back (Gradio 6 then reloads).
    Rule(activity="passive", path=r"^(/gradio_api)?/(heartbeat|monitoring|app_id)(/|$)"),
    Rule(
        activity="wakes",
        methods=("POST",),
        # One segment after run, call and api: scanners post to /api/v1/… and deeper.
        path=r"^(/gradio_api)?/((run|call(/v2)?|api)/[^/]+|queue/join|upload|component_server"
        r"|process_recording)/?$",
    ),
    Rule(
        activity="keeps_on",
        methods=("GET",),
        path=r"^(/gradio_api)?/(queue/data|call|upload_progress)(/|$)",
    ),
    # Pieces of a microphone or camera stream that is being answered.
    Rule(activity="keeps_on", methods=("POST",), path=r"^(/gradio_api)?/stream/"),
    *_LAST,
)

_OPEN_WEBUI = (
    Rule(activity="passive", path=r"^/ws/socket\.io"),
    Rule(activity="passive", path=r"^/(health|api/(config|version|usage))(/|$)"),
    Rule(
        activity="wakes",
        methods=("POST",),
        path=r"^/(api|ollama|openai)(/api)?(/v\d+)?/(chat/completions|completions|chat|generate|embed"
        r"|embeddings|messages|images/generations|audio/(speech|transcriptions))(/\d+)?$",
    ),
    Rule(activity="keeps_on", methods=("POST", "PUT", "PATCH", "DELETE")),
    *_LAST,
)

_OPENAI = (
    Rule(activity="passive", path=r"^/(health|ping|version|metrics)$"),
    Rule(activity="wakes", methods=("POST",), path=r"^/v\d+/"),
    *_LAST,
)

_WRITES = ("POST", "PUT", "PATCH", "DELETE")

_GENERIC = (
    # No path tells use from the scanners that post to every public address, so a request wakes only
    # with a sign of somebody who means it: a page's own script or form (that its site is this one is
    # checked for every wake), one of our keys, or a body in JSON; scanners send forms and XML.
    Rule(activity="wakes", methods=_WRITES, headers={"sec-fetch-site": "^same-origin$"}),
    Rule(activity="wakes", methods=_WRITES, headers={"origin": "^https?://"}),
    Rule(activity="wakes", methods=_WRITES, headers={"authorization": "(?i)^bearer +qk_"}),
    Rule(activity="wakes", methods=_WRITES, headers={"x-api-key": "^qk_"}),
    Rule(activity="wakes", methods=_WRITES, headers={"content-type": "(?i)^application/json"}),
    Rule(activity="keeps_on", methods=_WRITES),
    *_LAST,
)

PRESETS: dict[str, tuple[Rule, ...]] = {
    "gradio": _GRADIO,
    "open-webui": _OPEN_WEBUI,
    "openai": _OPENAI,
    "generic": _GENERIC,
}
"""The rule tables by name of the preset."""
