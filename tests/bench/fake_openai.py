# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a server of OpenAI's protocol, and a proxy that holds back what passes it.

The workers of tests/server answer with events of their own, which say nothing of tokens.

    python tests/bench/fake_openai.py PORT [gap_s=0.01 ...]
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

ADMIN_KEY = "operator"


@dataclass
class Fake:
    """How the server answers; may be changed while it runs.

    Attributes:
        ttft_s, gap_s: until the first token, and between two.
        load_s: that a load takes; None: it does not tell what is loaded.
        ping_s: between two comments while there is no token yet; None: none.
        tokens_per_chunk: that a chunk has.
        fewer: tokens that answers lack.
        refuse: status of answers from request number `refuse_from` on.
        health: status of /health; 404: it has none.
        unknown: fields that it refuses by name.
        whole: it answers whole, whatever is asked.
        break_at: token at which it ends the connection.
        on_request: called with the number of requests so far.
        asked: bodies of all requests.
        in_flight, most_in_flight: requests.
    """

    models: tuple[str, ...] = ("a",)
    ttft_s: float = 0.02
    gap_s: float = 0.005
    load_s: float | None = None
    ping_s: float | None = None
    tokens_per_chunk: int = 1
    fewer: int = 0
    refuse: int = 200
    refuse_from: int = 0
    health: int = 200
    unknown: tuple[str, ...] = ()
    whole: bool = False
    break_at: int | None = None
    key: str | None = None
    on_request: Callable[[int], None] = lambda _: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    loaded: set[str] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/models/unload", self._unload)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        cards: list[dict[str, Any]] = [{"id": name} for name in self.models]
        if self.load_s is not None:
            for card in cards:
                card["status"] = {"value": "ready" if card["id"] in self.loaded else "unloaded"}
        return web.json_response({"data": cards})

    async def _unload(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {ADMIN_KEY}":
            return web.Response(status=403)
        self.loaded.discard((await request.json())["model"])
        return web.json_response({})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.on_request(len(self.asked))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for name in self.unknown:
                if name in body:
                    return web.json_response({"error": f"unknown field {name}"}, status=400)
            if self.refuse != 200 and len(self.asked) > self.refuse_from:
                return web.Response(status=self.refuse, headers={"Retry-After": "0.01"})
            return await self._answer(request, body)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        load_s = self.load_s or 0.0 if body["model"] not in self.loaded else 0.0
        self.loaded.add(body["model"])
        tokens = body["max_tokens"] - self.fewer
        usage = {"prompt_tokens": 9, "completion_tokens": tokens}
        if self.whole:
            return web.json_response({"choices": [{"message": {}}], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._wait(response, load_s + self.ttft_s)
        await _send(response, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for token in range(0, tokens, self.tokens_per_chunk):
            if token:
                await asyncio.sleep(self.gap_s * self.tokens_per_chunk)
            if token == self.break_at:
                assert request.transport is not None
                request.transport.abort()
                return response
            await _send(response, {"choices": [{"delta": {"content": f" {token}"}}]})
        await _send(response, {"choices": [{"delta": {}, "finish_reason": "length"}]})
        timings = {"load_s": load_s}
        extra = {} if self.load_s is None else {"timings": timings}
        await _send(response, {"choices": [], "usage": usage, **extra})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _wait(self, response: web.StreamResponse, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, self.ping_s or left))
            if self.ping_s:
                await response.write(b": ping\n\n")


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())


def proxy(upstream: str, hold: Callable[[int], bool], *, apart: bool = False) -> web.Application:
    """A proxy that collects events of streams.

    Args:
        upstream: where requests go.
        hold: whether it goes on collecting, given how many events of the answer it has seen; what
            is left goes out at the end.
        apart: it writes what it has collected event by event instead of at once.
    """

    async def forward(request: web.Request) -> web.StreamResponse:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, upstream + request.path, data=await request.read()
            ) as answer,
        ):
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.content_type}
            )
            await response.prepare(request)
            held: list[bytes] = []

            async def flush() -> None:
                for part in held if apart else [b"".join(held)]:
                    await response.write(part)
                held.clear()

            seen = 0
            while event := await answer.content.readuntil(b"\n\n"):
                held.append(event)
                seen += 1
                if not hold(seen):
                    await flush()
            await flush()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    return app


@contextmanager
def served(*applications: web.Application) -> Iterator[list[str]]:
    """Serve in another thread, so that programs can be run in this one; their addresses."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def do(what: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await what

        return asyncio.run_coroutine_threadsafe(wait(), loop).result(10)

    runners = [web.AppRunner(app, shutdown_timeout=0.1) for app in applications]
    try:
        urls = []
        for runner in runners:
            do(runner.setup())
            do(web.TCPSite(runner, "127.0.0.1", 0).start())
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield urls
    finally:
        for runner in runners:
            do(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


if __name__ == "__main__":
    changes = dict(text.split("=") for text in sys.argv[2:])
    settings = {name: json.loads(value) for name, value in changes.items()}
    web.run_app(Fake(**settings).application(), host="127.0.0.1", port=int(sys.argv[1]))
