# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a model's worker: the same socket and reports, no model.

How it loads is told by its expert's `description`, how it answers by the request's `fake` object,
both JSON. What it does is appended to `journal.txt` beside its socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

from capibara_axion.server import processes
from capibara_axion.server.launcher import WorkerSpec, report_failure, report_ready
from capibara_axion.server.worker import STREAM_DEFAULT_HEADER


def fake_worker_main(spec: WorkerSpec, status: Connection) -> None:
    processes.die_with_parent()
    os.setpgid(0, 0)
    orders = json.loads(spec.expert.description or "{}")
    time.sleep(orders.get("load_s", 0))
    if "fail" in orders:
        report_failure(status, orders["fail"])
        return
    if orders.get("crash"):
        os._exit(3)
    asyncio.run(_serve(spec, status))


async def _serve(spec: WorkerSpec, status: Connection) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application(client_max_size=0)
    app.router.add_post("/v1/{route:.*}", _Fake(spec).answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, spec.socket_path).start()
    report_ready(status, {"fake": True})
    await stop.wait()
    await runner.cleanup()


class _Fake:
    def __init__(self, spec: WorkerSpec) -> None:
        self._journal = Path(spec.socket_path).parent / "journal.txt"
        self._name = spec.expert.expert_id
        self._note("loaded")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        orders = body.get("fake", {})
        self._note(f"request {orders.get('tag', '')}")
        if _first_time(self._journal.parent, orders.get("die_once")):
            os._exit(1)
        try:
            if body.get("stream", request.headers[STREAM_DEFAULT_HEADER] == "1"):
                return await self._stream(request, orders)
            await asyncio.sleep(orders.get("take_s", 0))
            return web.json_response({"model": self._name, "pid": os.getpid(), "echo": body})
        except asyncio.CancelledError:
            self._note("cancelled")
            raise

    async def _stream(self, request: web.Request, orders: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index in range(orders.get("tokens", 3)):
            if index == orders.get("die_at"):
                await response.write(b'data: {"half": ')
                await asyncio.sleep(0.05)
                os._exit(1)
            await response.write(b'data: {"token": %d}\n\n' % index)
            await asyncio.sleep(orders.get("gap_s", 0))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _note(self, what: str) -> None:
        with self._journal.open("a") as file:
            file.write(f"{self._name} {what}\n")


def _first_time(directory: Path, name: str | None) -> bool:
    if name is None:
        return False
    marker = directory / f"died-{name}"
    if marker.exists():
        return False
    marker.touch()
    return True
