# SPDX-License-Identifier: Apache-2.0
"""The worker process: one engine behind HTTP on a Unix socket that only the gateway can reach."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import TYPE_CHECKING

from aiohttp import web

from capibara_axion.server import processes
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import WorkerSpec, report_failure, report_ready

if TYPE_CHECKING:
    from capibara_axion.server.openai_adapter import Engine

logger = logging.getLogger(__name__)

# Sent by the gateway: what a request without a `stream` of its own means.
STREAM_DEFAULT_HEADER = "X-Capibara-Stream-Default"

_ENGINE_DIED = 70  # exit code: EX_SOFTWARE


def worker_main(spec: WorkerSpec, status: Connection) -> None:
    """Load the model, report, serve until SIGTERM. Ends with its gateway, however that ends."""
    processes.die_with_parent()
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    processes.log_to_stderr(spec.log_level)
    try:
        from capibara_axion.server import openai_adapter

        # In the main thread and before any event loop: the engine process is forked from here.
        engine = openai_adapter.start_engine(spec)
    except Exception as error:
        logger.debug("loading %s failed", spec.expert.expert_id, exc_info=True)
        report_failure(status, _one_line(error))
        os._exit(1)
    asyncio.run(_serve(spec, engine, status))
    # Everything is closed; interpreter shutdown would only take time and find threads of vLLM's.
    os._exit(0)


def _end_with_gateway() -> None:
    gateway = parent_process()
    assert gateway is not None
    wait_for_any([gateway.sentinel])
    processes.kill_group(os.getpid())


async def _serve(spec: WorkerSpec, engine: Engine, status: Connection) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # A dead engine cannot be repaired. Ending at once is also the clearest message to the gateway,
    # which then knows which of its requests had sent something.
    loop.add_reader(engine.sentinel, os._exit, _ENGINE_DIED)

    app = web.Application(client_max_size=0)  # the gateway has bounded the size
    app.router.add_post("/v1/chat/completions", _completion_handler(engine.chat))
    app.router.add_post("/v1/completions", _completion_handler(engine.complete))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.UnixSite(runner, spec.socket_path).start()
    report_ready(status, engine.details)
    status.close()

    await stop.wait()
    loop.remove_reader(engine.sentinel)
    await runner.cleanup()
    engine.shutdown()


Complete = Callable[[bytes, bool], Awaitable[bytes | AsyncGenerator[bytes, None]]]


def _completion_handler(
    complete: Complete,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        stream_default = request.headers.get(STREAM_DEFAULT_HEADER) == "1"
        try:
            answer = await complete(await request.read(), stream_default)
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
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
