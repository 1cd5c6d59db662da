# SPDX-License-Identifier: Apache-2.0
"""What is learned of a server while it is measured, and that nothing is asked of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from capibara_axion.bench import watch

STATS = {
    "memory": {"measured_bytes": 300},
    "models": {
        "a": {"memory": {"measured_bytes": 300}},
        "b": {"memory": {"measured_bytes": None}},
    },
}
TOLD = [
    {"event": "state", "model": "a", "state": "loading", "time": 1.0},
    {"event": "loading", "model": "a", "phase": "weights", "time": 1.0},
    {"event": "state", "model": "a", "state": "ready", "time": 2.0},
    {"event": "unloading", "model": "a", "cause": "evicted", "time": 3.0},
]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_POLL_S", 0.001)


class OurServer:
    """Tells some events, then nothing; notes when both routes have been asked enough."""

    def __init__(self) -> None:
        self.told, self.sampled = asyncio.Event(), asyncio.Event()
        self.keys: set[str | None] = set()

    async def events(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": listening\n\n")
        for event in TOLD:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n: ping\n\n")
        self.told.set()
        await asyncio.Event().wait()
        return response

    async def stats(self, request: web.Request) -> web.Response:
        if self.told.is_set():  # the second one comes after all that was told
            self.sampled.set()
        return web.json_response(STATS)


async def served(**routes: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    app = web.Application()
    for path, handler in routes.items():
        app.router.add_get(f"/{path}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_events_and_memory() -> None:
    ours, clock = OurServer(), iter(range(10**6))
    async for url in served(events=ours.events, stats=ours.stats):
        async with (
            aiohttp.ClientSession() as session,
            watch.watch(session, url, lambda: float(next(clock)), "key") as seen,
        ):
            await asyncio.wait_for(ours.sampled.wait(), 20)
            # They are in the socket by now, and nobody is told when they have been read.
            while len(seen.events) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert ours.keys == {"Bearer key"}
    assert [(e.kind, e.model, e.cause) for e in seen.events] == [
        ("loading", "a", None),
        ("ready", "a", None),
        ("unloading", "a", "evicted"),
    ]
    assert [(m.model, m.bytes) for m in seen.memory[:2]] == [(None, 300), ("a", 300)]
    times = [sample.time_s for sample in seen.memory]
    assert times == sorted(times)


@pytest.mark.parametrize("answer", ["nothing", "page", "other JSON"])
async def test_other_servers_are_asked_once(answer: str) -> None:
    asked = {"events": 0, "stats": 0}

    async def other(request: web.Request) -> web.Response:
        asked[request.path[1:]] += 1
        if answer == "nothing":
            return web.Response(status=404)
        if answer == "page":
            return web.Response(text="<html></html>", content_type="text/html")
        return web.json_response({"memory": 3, "models": []})

    async for url in served(events=other, stats=other):
        async with (
            aiohttp.ClientSession() as session,
            watch.watch(session, url, lambda: 0.0) as seen,
        ):
            watching = [task for task in asyncio.all_tasks() if "_harmless" in repr(task)]
            assert len(watching) == 2
            await asyncio.wait_for(asyncio.wait(watching), 20)  # they end by themselves
    assert asked == {"events": 1, "stats": 1}
    assert (seen.events, seen.memory) == ([], [])


async def test_nobody_there_and_errors_within() -> None:
    async with aiohttp.ClientSession() as session:
        async with watch.watch(session, "http://127.0.0.1:1", lambda: 0.0) as seen:
            pass
        with pytest.raises(RuntimeError, match="measurement"):
            async with watch.watch(session, "http://127.0.0.1:1", lambda: 0.0):
                raise RuntimeError("of the measurement")
    assert (seen.events, seen.memory) == ([], [])
