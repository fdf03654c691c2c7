"""Recognise secrets by their names and by their form, and mask them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_MASK = "********"

# Patterns are compiled at their first use: most commands need none.
_NAME = (
    r"(?i)secret|token|passw|_pass$|^hash$|credential|authorization|cookie|(api|access)[-_]?key"
    r"|(^|[_-])key|key$"
)

_NO_SECRETS = ("_file", "-file", "keyfile", "_name", "-name", "monkey")
"""Ends of names of files, and of names that the cloud gives to keys."""

# Keys and tokens of Hugging Face, OpenAI, qwenctl, GitHub, AWS, Alibaba Cloud; bearer tokens (RFC
# 6750) and the user part of URLs (RFC 3986, 3.2.1).
_FORM = (
    r"\b(?:hf_[A-Za-z0-9]{20,}|(?:sk|qk)[-_][A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|LTAI[A-Za-z0-9]{12,})"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/?#\s]+(?=@)"
)

# Query parameters, also percent-encoded once or twice, as in strings that Alibaba Cloud signs.
_PARAMETER = (
    r"(?i)((?:[?&][\w.-]{0,40}?(?:secret|token|passw|key|credential)[\w.-]{0,40}"
    r"|AccessKeyId|SecurityToken|Signature|SignatureNonce)(?:=|%3D|%253D))"
    r"[^&\s]+?(?=&|%26|%2526|\s|$)"
)


def is_secret(name: str) -> bool:
    """Return whether a key, variable or option of this name holds a secret, not a file of it."""
    return bool(re.search(_NAME, name)) and not name.lower().endswith(_NO_SECRETS)


def secret_options(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Find the secrets in a command: index of the word, text before it in the word, secret."""
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not option.startswith("-") or not is_secret(option.lstrip("-")):
            continue
        if equals:
            yield index, f"{option}=", value
        elif index + 1 < len(words) and not words[index + 1].startswith("-"):
            yield index + 1, "", words[index + 1]


def redacted(text: str, secrets: Iterable[str] = (), mask: str = "***") -> str:
    """Mask these secrets in a text, and everything that has the form of a secret."""
    for secret in filter(None, secrets):
        text = text.replace(secret, mask)
    return re.sub(_PARAMETER, rf"\1{mask}", re.sub(_FORM, mask, text))


def masked(value: Any, key: str = "") -> Any:
    """Mask the secrets in settings: by key, in commands, in texts, and all of an ``env`` table."""
    if isinstance(value, dict):
        if key == "env":
            return dict.fromkeys(value, _MASK)
        return {name: masked(inner, name) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        words = [masked(item, key) for item in value]
        if key in ("command", "entrypoint"):
            for index, before, _ in secret_options(value):
                words[index] = before + _MASK
        return words
    if not isinstance(value, str) or not value:
        return value
    return _MASK if is_secret(key) else redacted(value, mask=_MASK)
