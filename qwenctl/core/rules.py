"""Sort each request into a class of activity by an ordered table of rules.

The first match wins. `qwenctl.core.presets` has the tables that come with qwenctl.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Activity(str, Enum):
    """The effect of a request on the GPU.

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
    """A row of the table; every condition given must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    activity: Literal["wakes", "keeps_on", "messages", "passive", "refused"]
    """The class of a request that matches."""
    methods: tuple[str, ...] = ()
    """HTTP methods in capitals; ``WEBSOCKET`` for WebSocket handshakes; none: all."""
    path: str = ""
    """A regular expression searched in the path (anchor it with ^ and $); empty: all."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Header name → regular expression searched in its value; a missing header is empty."""

    kept_on_by: str = ""
    """A regular expression searched in what the node sends in answer (WebSocket messages, pieces of
    a body): each match keeps the GPU on, whatever the class. For answers among keep-alives."""

    @field_validator("path", "kept_on_by")
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

    def matches(self, path: str, headers: Mapping[str, str]) -> bool:
        """Return whether all conditions but that on the method hold.

        Header names in ``headers`` are lower case.
        """
        if self.path and not _compiled(self.path).search(path):
            return False
        for name, pattern in self.headers.items():
            if not _compiled(pattern).search(headers.get(name, "")):
                return False
        return True


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class RuleTable:
    """Rules in order, filtered by method once, since every request is classified."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._by_method: dict[str, tuple[tuple[Rule, Activity], ...]] = {}
        self.refuses = any(rule.activity == "refused" for rule in rules)
        """Whether any rule refuses requests."""
        self.listens = any(rule.kept_on_by for rule in rules)
        """Whether any rule looks into answers."""

    def classify(self, method: str, path: str, headers: Mapping[str, str]) -> Activity:
        """Return the class of a request; passive if no rule matches."""
        found = self._match(method, path, headers)
        return found[1] if found else Activity.PASSIVE

    def kept_on_by(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> re.Pattern[str] | None:
        """Return the pattern to search in the answer to a request; None: there is none."""
        found = self._match(method, path, headers)
        return _compiled(found[0].kept_on_by) if found and found[0].kept_on_by else None

    def _match(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[Rule, Activity] | None:
        rules = self._by_method.get(method)
        if rules is None:
            rules = tuple(
                (rule, Activity(rule.activity))
                for rule in self._rules
                if not rule.methods or method in rule.methods
            )
            if len(self._by_method) < 64:  # clients may invent methods
                self._by_method[method] = rules
        for row in rules:
            if row[0].matches(path, headers):
                return row
        return None
