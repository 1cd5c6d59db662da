# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a model's worker: the same socket and messages, no model.

How it loads is told by its expert's `description` if that is JSON, how it answers by the request's
`fake` object; without one it says its name. What it does is appended to `journal.txt` beside its
socket.

Loading:
    phases {name: seconds, ...}   what it reports before it is ready, and how long each takes
    load_s                        seconds before it is ready
    fail "reason" | crash         it reports a failure | it ends with code 3
    mib                           memory that it holds
    ignore_term                   SIGTERM does nothing
    cores_s                       seconds until a change of its cores is in effect
    beat_s                        seconds between beats
Answering:
    tag                           for the journal
    die_once "name"               it ends, the first time that a request has this name
    take_s                        until a whole answer is ready; it takes steps meanwhile
    tokens, ttft_s, gap_s         of a stream: how many, until the first, between two
    pad                           bytes that each of them has more
    text                          what a stream says instead, a word a token, in OpenAI's chunks
    die_at | hang_at              the token at which it ends | takes no more steps and sends nothing
    block_loop                    seconds for which its event loop stands still, at once
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from capibara_axion.server import processes
from capibara_axion.server.control import BEAT_S, Beat, Channel, Cores, Failed, Phase, Ready
from capibara_axion.server.launcher import WorkerSpec
from capibara_axion.server.worker_request import WorkerRequest

# Seconds of a step while nothing comes of it, as in a long prompt.
_STEP_S = 0.05


def fake_worker_main(spec: WorkerSpec, connection: Connection) -> None:
    processes.end_with_gateway()
    channel = Channel(connection)
    description = spec.expert.description
    orders = json.loads(description) if description.startswith("{") else {}
    for phase, seconds in orders.get("phases", {}).items():
        channel.send(Phase(phase))
        time.sleep(seconds)
    time.sleep(orders.get("load_s", 0))
    if "fail" in orders:
        channel.send(Failed(orders["fail"]))
        return
    if orders.get("crash"):
        os._exit(3)
    uvloop.run(_serve(spec, channel, orders))


async def _serve(spec: WorkerSpec, channel: Channel, orders: dict[str, Any]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    on_term = (lambda: None) if orders.get("ignore_term") else stop.set
    loop.add_signal_handler(signal.SIGTERM, on_term)
    held = b"x" * (orders.get("mib", 0) << 20)
    fake = _Fake(spec, channel, orders)
    app = web.Application(client_max_size=0)
    app.router.add_post("/v1/{route:.*}", fake.answer)
    app.router.add_get("/metrics", fake.metrics)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, spec.socket_path, backlog=processes.LISTEN_BACKLOG).start()
    channel.send(Ready({"fake": True}))
    loop.add_reader(channel.fileno(), fake.on_message)
    beats = asyncio.create_task(fake.beat())
    await stop.wait()
    beats.cancel()
    await runner.cleanup()
    del held


class _Fake:
    def __init__(self, spec: WorkerSpec, channel: Channel, orders: dict[str, Any]) -> None:
        self._journal = Path(spec.socket_path).parent / "journal.txt"
        self._name = spec.expert.expert_id
        self._channel = channel
        self._cores_s = orders.get("cores_s", 0)
        self._beat_s = orders.get("beat_s", BEAT_S)
        self._running = self._steps = self._tokens = 0
        self._hangs = False
        self._note("loaded")

    async def beat(self) -> None:
        while True:
            cpu_s = time.process_time()
            self._channel.send(Beat(self._running, self._steps, self._tokens, cpu_s))
            await asyncio.sleep(self._beat_s)

    def on_message(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            message = self._channel.receive()
        except EOFError:
            loop.remove_reader(self._channel.fileno())
            return
        assert isinstance(message, Cores)
        loop.call_later(self._cores_s, self._use, message)

    def _use(self, cores: Cores) -> None:
        self._note(f"cores {','.join(map(str, cores.cpus))}")
        self._channel.send(cores)

    async def metrics(self, _: web.Request) -> web.Response:
        name = "vllm:num_requests_running"
        value = f'{name}{{model_name="{self._name}"}} {self._running}'
        return web.Response(text=f"# TYPE {name} gauge\n{value}\n")

    async def answer(self, http: web.Request) -> web.StreamResponse:
        request = WorkerRequest.of(http.headers, await http.read())
        body = json.loads(request.body)
        orders = body.get("fake", {"text": f"I am {self._name}."})
        self._note(f"request {orders.get('tag', '')}")
        if _first_time(self._journal.parent, orders.get("die_once")):
            os._exit(1)
        time.sleep(orders.get("block_loop", 0))  # noqa: ASYNC251
        self._running += 1
        try:
            if body.get("stream", request.stream_default):
                return await self._stream(http, request, orders)
            await self._compute(orders.get("take_s", 0))
            await self._token(0, orders)
            request.generated(1)
            fields = {"model": self._name, "pid": os.getpid(), "echo": body}
            text = request.with_timings(json.dumps(fields))
            return web.Response(text=text, content_type="application/json")
        except asyncio.CancelledError:
            self._note("cancelled")
            raise
        finally:
            self._running -= 1

    async def _stream(
        self, http: web.Request, request: WorkerRequest, orders: dict[str, Any]
    ) -> web.StreamResponse:
        await self._compute(orders.get("ttft_s", 0))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        frames = _chunks(orders["text"]) if "text" in orders else _tokens(orders)
        for index, frame in enumerate(frames):
            if index == orders.get("die_at"):
                await response.write(b'data: {"half": ')
                await asyncio.sleep(0.05)
                os._exit(1)
            await self._token(index, orders)
            request.generated(1)
            await response.write(frame)
            await asyncio.sleep(orders.get("gap_s", 0))
        if "text" in orders:
            usage = {"completion_tokens": len(_words(orders["text"]))}
            last = json.dumps({"choices": [], "usage": usage})
            await response.write(f"data: {request.with_timings(last)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _token(self, index: int, orders: dict[str, Any]) -> None:
        self._hangs = self._hangs or index == orders.get("hang_at")
        await self._step()
        self._tokens += 1

    async def _compute(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _STEP_S))
            await self._step()

    async def _step(self) -> None:
        if self._hangs:  # and with it everything that it computes
            await asyncio.Event().wait()
        self._steps += 1

    def _note(self, what: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{self._name} {what}\n")


def _tokens(orders: dict[str, Any]) -> Iterator[bytes]:
    pad = b" " * orders.get("pad", 0)
    for index in range(orders.get("tokens", 3)):
        yield b'data: {"token": %d%s}\n\n' % (index, pad)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def _chunks(text: str) -> Iterator[bytes]:
    for word in _words(text):
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        fields = {"object": "chat.completion.chunk", "choices": [choice]}
        yield b"data: " + json.dumps(fields).encode() + b"\n\n"


def _first_time(directory: Path, name: str | None) -> bool:
    if name is None:
        return False
    marker = directory / f"died-{name}"
    if marker.exists():
        return False
    marker.touch()
    return True
