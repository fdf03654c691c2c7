"""Ports and HTTP for tests."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

__all__ = ["JSON", "Answer", "free_port", "free_ports", "post", "post_all"]

JSON = {"Content-Type": "application/json"}
"""What marks a request as one of a program that means it, and so wakes under every preset."""


_given_out: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody has now, and that are given to nobody else later.

    Below the range from which the system picks: it gives a port that nobody has bound yet to the
    next who asks. Each worker of pytest-xdist has a part of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw7").removeprefix("gw")) % 8
    ports: list[int] = []
    while len(ports) < count:
        port = 10_000 + 2_500 * worker + random.randrange(2_500)
        if port in _given_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_out.add(port)
        ports.append(port)
    return ports


def free_port() -> int:
    """One port; see `free_ports`."""
    return free_ports(1)[0]


@dataclass(frozen=True)
class Answer:
    """What became of one request: a status and a body, or an error."""

    status: int
    body: str = ""
    error: str = ""


async def post(
    http: aiohttp.ClientSession,
    url: str,
    *,
    host: str = "",
    body: bytes = b"{}",
    method: str = "POST",
) -> Answer:
    """One request, read to its last byte; a connection that breaks is status 0."""
    headers = JSON | ({"Host": host} if host else {})
    try:
        async with http.request(method, url, data=body, headers=headers) as response:
            return Answer(response.status, await response.text())
    except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
        return Answer(0, error=f"{type(error).__name__}: {error}")


def post_all(urls: Sequence[str], *, host: str = "", timeout: float = 60.0) -> list[Answer]:
    """All requests at the same moment, each on a connection of its own."""

    async def run() -> list[Answer]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout),
        ) as http:
            return list(await asyncio.gather(*(post(http, url, host=host) for url in urls)))

    return asyncio.run(run())
