"""Ask the metadata service of a cloud instance, in the mode that needs a token.

EC2 calls it IMDSv2, Alibaba Cloud hardened mode; they differ in address and header names only.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

import requests
from urllib3.exceptions import HTTPError

from qwenctl.lib.http_probe import IDENTITY, read_bounded

CloudName = Literal["aliyun", "aws"]

_URLS: dict[CloudName, str] = {
    "aliyun": "http://100.100.100.200",
    "aws": "http://169.254.169.254",
}
_TOKEN_HEADERS: dict[CloudName, str] = {
    "aliyun": "X-aliyun-ecs-metadata-token",
    "aws": "X-aws-ec2-metadata-token",
}

TOKEN_SECONDS = 300
MAX_BYTES = 64 * 1024


class NoMetadata(Exception):
    """The metadata service gave no usable answer; the text says why, without secrets."""


@dataclass(frozen=True)
class Value:
    """The service's value at a path."""

    text: str
    now: float
    """Unix seconds by the service's clock, or by this machine's if the answer has no date."""


class Metadata:
    """A client of the metadata service. For one thread.

    Args:
        cloud: whose service it is.
        url: where it is; default: the cloud's own link-local address.
        timeout: seconds to connect, and between two bytes of an answer.
    """

    def __init__(self, cloud: CloudName, url: str = "", *, timeout: float = 10.0) -> None:
        self._url = url or _URLS[cloud]
        self._header = _TOKEN_HEADERS[cloud]
        self._timeout = timeout
        self._token = ""
        self._http = requests.Session()
        self._http.trust_env = False  # a web proxy does not know this instance

    def get(self, path: str) -> Value | None:
        """Return the value below ``latest/meta-data/``; None: there is none (404).

        Raises:
            NoMetadata: no answer, or one that is neither a value nor "not found".
        """
        fresh = not self._token
        if fresh:
            self._take_token()
        status, value = self._ask("GET", f"meta-data/{path}", {self._header: self._token})
        if status in (401, 403) and not fresh:  # the token has run out
            self._take_token()
            status, value = self._ask("GET", f"meta-data/{path}", {self._header: self._token})
        if status == 404:
            return None
        if status != 200:
            self._token = ""
            raise NoMetadata(f"HTTP {status}")
        return value

    def need(self, path: str) -> Value:
        """Return the value, which must be there.

        Raises:
            NoMetadata: as `get`, or there is no such value.
        """
        value = self.get(path)
        if value is None:
            raise NoMetadata("HTTP 404")
        return value

    def _take_token(self) -> None:
        self._token = ""
        headers = {f"{self._header}-ttl-seconds": str(TOKEN_SECONDS)}
        status, value = self._ask("PUT", "api/token", headers)
        token = value.text.strip()
        if status != 200 or not token:
            raise NoMetadata(f"no token, HTTP {status}")
        self._token = token

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, Value]:
        try:
            with contextlib.closing(
                self._http.request(
                    method,
                    f"{self._url}/latest/{path}",
                    headers={**headers, **IDENTITY},
                    timeout=self._timeout,
                    allow_redirects=False,
                    stream=True,
                )
            ) as response:
                content = read_bounded(response, MAX_BYTES, 3 * self._timeout)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise NoMetadata(type(error).__name__) from None
        now = _unix(response.headers.get("Date", ""))
        return response.status_code, Value(content.decode("utf-8", "replace"), now)


def _unix(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return time.time()
