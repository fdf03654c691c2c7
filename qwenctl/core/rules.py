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

from qwenctl.core.spelling import is_plain, malformed, readings


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


_STRENGTH = (
    Activity.PASSIVE,
    Activity.MESSAGES,
    Activity.KEEPS_ON,
    Activity.WAKES,
    Activity.REFUSED,
)


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

    def matches(self, path: str, headers: Mapping[str, str], *, any_case: bool = False) -> bool:
        """Return whether all conditions but that on the method hold.

        Header names in ``headers`` are lower case. ``any_case``: the path's case does not count.
        """
        if self.path and not _compiled(self.path, any_case).search(path):
            return False
        for name, pattern in self.headers.items():
            if not _compiled(pattern).search(headers.get(name, "")):
                return False
        return True


@lru_cache(maxsize=512)
def _compiled(pattern: str, any_case: bool = False) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE if any_case else 0)


_Row = tuple[Rule, Activity]


class Ambiguous(ValueError):
    """A path can be read in several ways that differ in what they mean."""


class RuleTable:
    """Rules in order, filtered by method once, since every request is classified."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._by_method: dict[str, tuple[_Row, ...]] = {}
        self.listens = any(rule.kept_on_by for rule in rules)
        """Whether any rule looks into answers."""

    def classify_sent(self, method: str, path: str, headers: Mapping[str, str]) -> Activity:
        """Return the class of a request by its path as it was sent, percent-encoded.

        It is the strongest class by any usual reading of the path, in any case.

        Raises:
            Ambiguous: the path is malformed, or of a stronger class as a lenient server reads it.
        """
        if is_plain(path):
            return _activity(self._in_any_case(method, path, headers))
        found = self._strongest(method, path, headers)
        loose = max(
            (self._in_any_case(method, reading, headers) for reading in readings(path)[1]),
            key=_strength,
            default=found,
        )
        if Activity.REFUSED in (_activity(loose), _activity(found)):
            return Activity.REFUSED
        if why := malformed(path):
            raise Ambiguous(why)
        if _strength(loose) > _strength(found):
            raise Ambiguous(
                "servers read this path differently; write it without '//', '..', ';' and backslashes"
            )
        return _activity(found)

    def kept_on_by(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> re.Pattern[str] | None:
        """Return the pattern to search in the answer to a request; None: there is none.

        The path is as it was sent.
        """
        found = self._strongest(method, path, headers)
        return _compiled(found[0].kept_on_by) if found and found[0].kept_on_by else None

    def classify(self, method: str, path: str, headers: Mapping[str, str]) -> Activity:
        """Return the class of a request by its decoded path; passive if no rule matches."""
        return _activity(self._match(method, path, headers))

    def _strongest(self, method: str, path: str, headers: Mapping[str, str]) -> _Row | None:
        """Return the strongest match by any usual reading of a path as it was sent."""
        usual = (path,) if is_plain(path) else readings(path)[0]
        return max((self._in_any_case(method, p, headers) for p in usual), key=_strength)

    def _in_any_case(self, method: str, path: str, headers: Mapping[str, str]) -> _Row | None:
        found = self._match(method, path, headers)
        if path == path.lower():
            return found
        return max(found, self._match(method, path, headers, any_case=True), key=_strength)

    def _match(
        self, method: str, path: str, headers: Mapping[str, str], *, any_case: bool = False
    ) -> _Row | None:
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
            if row[0].matches(path, headers, any_case=any_case):
                return row
        return None


def _activity(row: _Row | None) -> Activity:
    return row[1] if row else Activity.PASSIVE


def _strength(row: _Row | None) -> tuple[int, bool]:
    """Return how much a match may keep the GPU on: also by what its answers hold."""
    return _STRENGTH.index(_activity(row)), bool(row and row[0].kept_on_by)
