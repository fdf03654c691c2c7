"""The status stream of waiting pages: after errors, and for many pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import proxy.control.status_stream
from proxy.http.request import Message
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from tests.integration.proxy.parts import FaultyStore, into, nothing_more, parts, scope, soon
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


def test_a_page_gets_news_after_any_error(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    page_status = proxy.control.status_stream.page_status

    def failing(*args: Any, **options: Any) -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return page_status(*args, **options)

    monkeypatch.setattr(proxy.control.status_stream, "page_status", failing)

    async def go() -> None:
        async with parts(faulty) as made:
            await made.snapshots.start()
            sent: list[Message] = []
            stream = asyncio.ensure_future(
                made.stream(scope(path="/_qwenctl/api/events"), nothing_more, into(sent))
            )

            def told(what: str) -> bool:
                return any(what in str(message.get("body")) for message in list(sent))

            await soon(lambda: told("phase"), 5, "the first status")
            errors.append(RuntimeError("odd"))
            await asyncio.to_thread(life.store.look, GPU, actor="a", cause="b")
            await soon(lambda: not errors, 5, "the error")
            block = {"reason": "a new disk", "actor": "eve"}
            await asyncio.to_thread(life.store.block, GPU, "maintenance:eve", 60.0, **block)
            await soon(lambda: told("a new disk"), 5, "news")
            assert not stream.done()
            stream.cancel()

    asyncio.run(go())


def test_many_waiting_pages_cost_as_much_as_one(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_statuses: list[Phase] = []
    page_status = proxy.control.status_stream.page_status

    def counting(snapshot: Snapshot, *args: Any, **options: Any) -> dict[str, Any]:
        made_statuses.append(snapshot.phase)
        return page_status(snapshot, *args, **options)

    monkeypatch.setattr(proxy.control.status_stream, "page_status", counting)
    pages, changes = 200, 10

    async def go() -> None:
        async with parts(faulty) as made:
            await made.snapshots.start()
            inboxes: list[list[Message]] = [[] for _ in range(pages)]
            streams = [
                asyncio.ensure_future(
                    made.stream(scope(path="/_qwenctl/api/events"), nothing_more, into(inbox))
                )
                for inbox in inboxes
            ]
            for number in range(changes):
                reason = f"reason {number}."
                block = {"reason": reason, "actor": "eve"}

                def told(inbox: list[Message], reason: str = reason) -> bool:
                    return any(reason in str(message.get("body")) for message in inbox[-5:])

                await asyncio.to_thread(life.store.block, GPU, "maintenance:eve", 60.0, **block)
                await soon(lambda: all(map(told, inboxes)), 10, "news")
            for stream in streams:
                stream.cancel()

    asyncio.run(go())
    assert len(made_statuses) >= changes
    assert len(made_statuses) <= 2 * changes + 2
