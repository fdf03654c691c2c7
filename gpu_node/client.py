"""Send signed messages over HTTP to the proxy that answers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import requests
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError, ProtocolError

from qwenctl.errors import ConfigError
from qwenctl.lib.http_probe import IDENTITY, read_bounded
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Answer
from qwenctl.protocol.signing import (
    MAX_SKEW_SECONDS,
    NONCE_HEADER,
    BadSignature,
    Stale,
    check_answer,
    sign_message,
)

log = logging.getLogger(__name__)

TIMEOUT = (3.0, 10.0)
"""Seconds to connect, and between two bytes of the answer."""

ANSWER_SECONDS = 20.0
"""Seconds for the body of an answer, however it comes."""

MAX_ANSWER_BYTES = 1024 * 1024

_JSON = {"Content-Type": "application/json", **IDENTITY}


class NoContact(Exception):
    """No proxy gave a valid answer; the text says why, one reason a proxy."""


class NotUnderstood(NoContact):
    """A proxy's signed answer says what this version does not know."""


class _OtherSecret(NoContact):
    """An answer was signed with another secret, or not at all."""


@dataclass(frozen=True)
class Reply:
    """An answer that a proxy has signed."""

    status: int
    answer: Answer

    @property
    def accepted(self) -> bool:
        """Whether the proxy took the message."""
        return self.status == 200


class ProxyClient:
    """A client of one deployment's proxies. For one thread.

    Args:
        urls: the proxies, without a path; the last that answered is asked first.
        secret: the node secret.
        clock: Unix time in seconds, of this machine.
        reread: reads the secret anew, after an answer that is signed otherwise. It may be replaced
            under work, here or at the proxy first.
    """

    def __init__(
        self,
        urls: Sequence[str],
        secret: str,
        clock: Callable[[], float] = time.time,
        *,
        reread: Callable[[], str] | None = None,
    ) -> None:
        self._urls = list(urls)
        self._secret = secret
        self._reread = reread or (lambda: secret)
        self._clock = clock
        self._offset = 0.0
        """The proxy's clock minus this machine's, in seconds, once a message was refused for it."""
        self._http = requests.Session()
        # A web proxy of the environment is meant for the Internet, and a netrc entry would put a
        # password into the message.
        self._http.trust_env = False

    def close(self) -> None:
        self._http.close()

    def send(self, path: str, message: BaseModel) -> Reply:
        """Post the message to the first proxy that answers.

        Raises:
            NoContact: no proxy gave a signed answer, or all have errors of their own (5xx).
        """
        body = message.model_dump_json().encode()
        reasons, kind = [], NoContact
        for url in list(self._urls):
            try:
                reply = self._ask_with_either_secret(url, path, body)
            except NoContact as reason:
                reasons.append(f"{redacted(url)}: {reason}")
                if isinstance(reason, NotUnderstood):
                    kind = NotUnderstood
                continue
            self._urls.remove(url)
            self._urls.insert(0, url)
            return reply
        raise kind("; ".join(reasons))

    def _ask_with_either_secret(self, url: str, path: str, body: bytes) -> Reply:
        used = self._secret
        try:
            return self._ask(url, path, body)
        except _OtherSecret:
            try:
                self._secret = self._reread()
            except ConfigError as error:
                raise NoContact(f"an answer signed with another secret; {error}") from None
            if self._secret == used:
                raise
        try:
            reply = self._ask(url, path, body)
        except NoContact:
            self._secret = used  # which other proxies may have yet
            raise
        log.warning("the node secret was replaced: going on with the new one")
        return reply

    def _ask(self, url: str, path: str, body: bytes) -> Reply:
        try:
            reply = self._post(url, path, body)
        except NoContact as reason:
            if not _was_cut(reason):
                raise
            # The proxy closed the kept connection just before this use, or was restarted.
            reply = self._post(url, path, body)
        if reply.status == 401:
            offset = reply.answer.server_time - self._clock()
            if abs(offset - self._offset) > MAX_SKEW_SECONDS / 2:
                self._offset = offset
                log.warning("%s; working on with the proxy's time", Stale(-offset))
                reply = self._post(url, path, body)
        return reply

    def _post(self, url: str, path: str, body: bytes) -> Reply:
        headers = sign_message(self._secret, "POST", path, body, now=self._clock() + self._offset)
        nonce = headers[NONCE_HEADER]
        try:
            with contextlib.closing(
                self._http.post(
                    url + path,
                    data=body,
                    headers={**headers, **_JSON},
                    timeout=TIMEOUT,
                    allow_redirects=False,
                    stream=True,
                )
            ) as response:
                content = read_bounded(response, MAX_ANSWER_BYTES, ANSWER_SECONDS)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise NoContact(_reason(error)) from error
        if response.status_code >= 500:
            raise NoContact(f"status {response.status_code}")
        try:
            check_answer(self._secret, nonce, response.status_code, content, response.headers)
            return Reply(response.status_code, Answer.model_validate_json(content))
        except BadSignature:
            raise _OtherSecret(
                f"status {response.status_code}, ignored: not signed with this node's secret; "
                "is it the proxy, and is the node secret the same on both sides? A new one in the "
                "node's file counts at once"
            ) from None
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise NotUnderstood(
                f"an answer that this version does not understand ({where}: {problem['msg']}); the "
                "proxy is newer: upgrade this node's qwenctl"
            ) from None


def _was_cut(reason: NoContact) -> bool:
    """Whether an open connection broke, rather than none being made."""
    cause = reason.__cause__
    return isinstance(cause, requests.ConnectionError) and isinstance(
        cause.args[0] if cause.args else None, ProtocolError
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause: urllib3 wraps "connection refused" four times."""
    while isinstance(inner := error.__cause__ or error.__context__, BaseException):
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
