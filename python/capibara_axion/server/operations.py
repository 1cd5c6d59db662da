# SPDX-License-Identifier: Apache-2.0
"""Routes about the server itself: health, statistics, metrics, events, loading and unloading."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from capibara_axion.server import openapi
from capibara_axion.server.calls import model_named_in, read_fields
from capibara_axion.server.completions import WorkerSessions
from capibara_axion.server.errors import ApiError
from capibara_axion.server.event_stream import EventStream
from capibara_axion.server.metrics import Metrics, watch_loop_lag
from capibara_axion.server.models import ModelState
from capibara_axion.server.news import as_frames, frame
from capibara_axion.server.pool import ModelPool

logger = logging.getLogger(__name__)

_METRICS_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
# An event loop that is later than this is not ready for more requests.
_READY_LAG_S = 1.0


class Operations:
    """Request handlers for whoever runs the server.

    Attributes:
        draining: the server is shutting down and admits nothing more.
    """

    def __init__(
        self,
        pool: ModelPool,
        sessions: WorkerSessions,
        metrics: Metrics,
        needs_key: bool,
    ) -> None:
        self.draining = False
        self.routed: dict[str, Any] = {"total": 0, "by_model": {}, "last": []}
        self._pool = pool
        self._sessions = sessions
        self._metrics = metrics
        self._needs_key = needs_key
        self._lag_s = 0.0
        self._started = time.time()

    async def watch_event_loop(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: measures, while the application runs, how late its event loop is."""

        def record(seconds: float) -> None:
            self._lag_s = seconds
            self._metrics.event_loop_lag(seconds)

        task = asyncio.ensure_future(watch_loop_lag(record))
        yield
        task.cancel()

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_get("/health", self._health)
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/running", self._running)
        app.router.add_get("/metrics", self._render_metrics)
        app.router.add_get("/events", self._events)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)

    async def _health(self, _: web.Request) -> web.Response:
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        return web.json_response({"status": "ok"})

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _ready(self, _: web.Request) -> web.Response:
        """Ready only if an event goes through the scheduler now and the loop keeps up."""
        problem = ""
        if self.draining:
            problem = "draining"
        elif self._lag_s > _READY_LAG_S:
            problem = f"the event loop is {self._lag_s:.1f} s late"
        else:
            try:
                self._pool.probe()
            except Exception as error:
                logger.exception("the scheduler is broken")
                problem = f"the scheduler does not move: {error!r}"
        lag = round(self._lag_s, 4)
        if problem:
            body = {"status": "not ready", "reason": problem, "event_loop_lag_s": lag}
            return web.json_response(body, status=503)
        return web.json_response({"status": "ready", "event_loop_lag_s": lag})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "uptime_s": round(time.time() - self._started, 3),
                "draining": self.draining,
                "event_loop_lag_s": round(self._lag_s, 4),
                "memory": self._pool.memory(),
                "limits": {
                    "max_images": self._pool.settings.max_images,
                    "max_image_bytes": self._pool.settings.max_image_bytes,
                },
                "routing": self.routed,
                "models": self._pool.statistics(),
            }
        )

    async def _running(self, _: web.Request) -> web.Response:
        running = [
            {
                "model": name,
                "state": view.state.value,
                "running": view.running,
                "waiting": view.waiting,
            }
            for name, view in self._pool.view().items()
            if view.state not in (ModelState.UNLOADED, ModelState.FAILED)
        ]
        return web.json_response({"running": running})

    async def _render_metrics(self, _: web.Request) -> web.Response:
        workers = {
            name: worker
            for name in self._pool.experts
            if (worker := self._pool.worker_of(name)) is not None
        }

        async def text_of(name: str) -> tuple[str, str]:
            with self._sessions.to(workers[name]) as session:
                get = session.get("http://worker/metrics", timeout=_METRICS_TIMEOUT)
                async with get as answer:
                    return name, await answer.text()

        texts = await asyncio.gather(*map(text_of, workers), return_exceptions=True)
        self._pool.report(self._metrics)
        readable = dict(text for text in texts if not isinstance(text, BaseException))
        body = await asyncio.to_thread(self._metrics.render, readable)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(
            openapi.document(list(self._pool.experts), needs_key=self._needs_key)
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        stream = self._event_stream(request)
        with self._pool.news.listen() as queue:
            await stream.write(b": listening\n\n")
            async for text in as_frames(queue, self._pool.settings.ping_interval_s):
                await stream.write(text)
        return stream.response

    async def _load(self, request: web.Request) -> web.StreamResponse:
        """Load a model: answered when it is there, or with its progress as events."""
        fields = await read_fields(request, self._pool.settings)
        model = self.known(model_named_in(fields))
        if fields.get("stream") is not True:
            return web.json_response(await self._loaded(model))
        stream = self._event_stream(request)
        with self._pool.news.listen() as queue:
            loading = asyncio.ensure_future(self._loaded(model))
            try:
                async for text in as_frames(queue, 1.0):
                    event = json.loads(text[6:]) if text.startswith(b"data: ") else {}
                    if event.get("model") == model:
                        await stream.write(text)
                    elif loading.done():
                        break
                    else:
                        progress = self._pool.load_progress(model)
                        await stream.write(frame({"event": "progress", **progress}))
            finally:
                loading.cancel()
        try:
            await stream.write(frame({"event": "done", **loading.result()}))
        except ApiError as error:
            await stream.fail(error)
            return stream.response
        await stream.write(b"data: [DONE]\n\n")
        await stream.response.write_eof()
        return stream.response

    async def _loaded(self, model: str) -> dict[str, Any]:
        # A load is wanted by a request; this one asks for nothing else.
        async with self._pool.turn(model) as turn:
            return {"model": model, "status": "ready", "load_s": round(turn.load_s, 3)}

    async def _unload(self, request: web.Request) -> web.Response:
        fields = await read_fields(request, self._pool.settings)
        model = self.known(model_named_in(fields))
        self._pool.unload(model)
        return web.json_response({"model": model, "status": self._pool.state_of(model)})

    def known(self, model: str) -> str:
        """The name, if the server has such a model.

        Raises:
            ApiError: 404.
        """
        if model not in self._pool.experts:
            known = ", ".join(self._pool.experts)
            message = f"the model {model[:200]!r} does not exist; this server has: {known}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return model

    def _event_stream(self, request: web.Request) -> EventStream:
        settings = self._pool.settings
        return EventStream(
            request, {}, ping_s=settings.ping_interval_s, send_timeout_s=settings.send_timeout_s
        )
