# SPDX-License-Identifier: Apache-2.0
"""The worker process: one engine behind HTTP on a Unix socket that only the gateway can reach."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web
from pydantic import ValidationError

from capibara_axion.server import logs, processes
from capibara_axion.server.control import BEAT_S, Channel, Cores, Failed, Message, Phase, Ready
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import WorkerSpec
from capibara_axion.server.worker_request import WorkerRequest

if TYPE_CHECKING:
    from capibara_axion.server.openai_adapter import Answer, Engine

logger = logging.getLogger(__name__)

_BROKEN = 70  # exit code: EX_SOFTWARE


def worker_main(spec: WorkerSpec, connection: Connection) -> None:
    """Load the model, report, serve until SIGTERM. Ends with its gateway, however that ends."""
    processes.end_with_gateway()
    logs.configure(spec.log_level, spec.log_format)
    # What vLLM says looks alike; the environment has the least level that it says.
    library = logging.getLogger("vllm")
    library.handlers[:], library.propagate = logging.getLogger("capibara_axion").handlers, False
    channel = Channel(connection)
    try:
        from capibara_axion.server import openai_adapter

        # In the main thread and before any event loop: the engine process is forked from here.
        engine = openai_adapter.start_engine(spec, lambda phase: channel.send(Phase(phase)))
    except Exception as error:
        logger.debug("loading %s failed", spec.expert.expert_id, exc_info=True)
        channel.send(Failed(_one_line(error)))
        os._exit(1)
    uvloop.run(_serve(spec, engine, channel))
    # Everything is closed; interpreter shutdown would only take time and find threads of vLLM's.
    os._exit(0)


async def _serve(spec: WorkerSpec, engine: Engine, channel: Channel) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # A dead engine cannot be repaired. Ending at once is also the clearest message to the gateway,
    # which then knows which of its requests had sent something.
    loop.add_reader(engine.sentinel, os._exit, _BROKEN)

    await engine.finish_start()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=engine.metrics(), content_type="text/plain")

    app = web.Application(client_max_size=0)  # the gateway has bounded the size
    app.router.add_post("/v1/chat/completions", _handler(engine.chat))
    app.router.add_post("/v1/completions", _handler(engine.complete))
    app.router.add_post("/v1/embeddings", _handler(engine.embed))
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.UnixSite(runner, spec.socket_path, backlog=processes.LISTEN_BACKLOG).start()
    channel.send(Ready(engine.details))
    tasks = [
        asyncio.create_task(_end_if_it_fails(work(engine, channel)))
        for work in (_beat, _follow_orders)
    ]

    await stop.wait()
    loop.remove_reader(engine.sentinel)
    for task in tasks:
        task.cancel()
    await runner.cleanup()
    engine.shutdown()


async def _beat(engine: Engine, channel: Channel) -> None:
    while True:
        channel.send(engine.beat())
        await asyncio.sleep(BEAT_S)


async def _follow_orders(engine: Engine, channel: Channel) -> None:
    """Do what the gateway asks for beside requests, one after the other."""
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[Message] = asyncio.Queue()

    def on_message() -> None:
        try:
            orders.put_nowait(channel.receive())
        except EOFError:  # the gateway is gone; `end_with_gateway` sees to the rest
            loop.remove_reader(channel.fileno())

    loop.add_reader(channel.fileno(), on_message)
    while True:
        order = await orders.get()
        assert isinstance(order, Cores)
        await engine.set_cores(order.cpus)
        channel.send(order)


async def _end_if_it_fails(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        logger.exception("the worker ends")
        os._exit(_BROKEN)


def _handler(
    answer_to: Callable[[WorkerRequest], Awaitable[Answer]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            answer = await answer_to(WorkerRequest.of(request.headers, await request.read()))
            if isinstance(answer, bytes):
                return web.Response(body=answer, content_type="application/json")
            # Headers go out with the first event, so that what fails before it has a status code.
            first = await anext(answer, b"")
        except Exception as problem:
            error = problem if isinstance(problem, ApiError) else _unexpected(problem)
            return web.Response(
                status=error.status, body=error.body(), content_type="application/json"
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        async with aclosing(answer):  # so that a client that leaves ends the work at once
            await response.prepare(request)
            await response.write(first)
            async for event in answer:
                await response.write(event)
            await response.write_eof()
        return response

    return handle


def _unexpected(error: Exception) -> ApiError:
    logger.error("a request failed", exc_info=error)
    return ApiError(500, f"the request failed: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, ValidationError):  # of vLLM's settings: without the settings themselves
        text = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
