# SPDX-License-Identifier: Apache-2.0
"""The public HTTP application: admission and errors here, everything about text in the workers.

A request's bytes go to the model's worker unchanged, and the worker's bytes come back unchanged.
The gateway looks into a request only to learn which model it is for.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from capibara_axion.server.config import ServerSettings
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import Worker
from capibara_axion.server.pool import ModelPool
from capibara_axion.server.worker import STREAM_DEFAULT_HEADER

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FRAME_END = b"\n\n"
# A worker may think for long before its first byte; its death is noticed by the connection.
_WORKER_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
# Between a worker's connection breaking and its process ending.
_WORKER_END_S = 5.0


class _WorkerLostError(Exception):
    """The worker's connection broke before the client had been sent anything."""


class Gateway:
    """Request handlers over one pool; `application` makes an app for each listener.

    Args:
        pool: where the models are.
        settings: limits.
        api_key: what clients must send as a bearer token, or None to let everybody in.
    """

    def __init__(self, pool: ModelPool, settings: ServerSettings, api_key: str | None) -> None:
        self.draining = False
        self._pool = pool
        self._settings = settings
        self._api_key = api_key.encode() if api_key is not None else None
        self._started = time.time()
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def application(self, *, stream_by_default: bool) -> web.Application:
        """An application whose completions are streamed, or not, unless the request says."""

        async def completion(request: web.Request) -> web.StreamResponse:
            return await self._completion(request, stream_by_default)

        app = web.Application(
            client_max_size=self._settings.max_body_bytes,
            middlewares=[_errors_as_json, self._authenticate],
        )
        app.router.add_post("/v1/chat/completions", completion)
        app.router.add_post("/v1/completions", completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        return app

    # Routes

    async def _models(self, _: web.Request) -> web.Response:
        models = [self._model_card(name) for name in self._pool.experts]
        return web.json_response({"object": "list", "data": models})

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(self._model_card(self._known(request.match_info["model"])))

    async def _health(self, _: web.Request) -> web.Response:
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        return web.json_response({"status": "ok"})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "uptime_s": round(time.time() - self._started, 3),
                "draining": self.draining,
                "models": self._pool.statistics(),
            }
        )

    async def _completion(
        self, request: web.Request, stream_by_default: bool
    ) -> web.StreamResponse:
        body = await self._read_body(request)
        model = self._known(_model_named_in(body))
        headers = {
            "Content-Type": "application/json",
            STREAM_DEFAULT_HEADER: "1" if stream_by_default else "0",
        }
        for attempt in (1, 2):
            async with self._pool.worker_for(model) as worker:
                try:
                    return await self._forward(request, worker, body, headers)
                except _WorkerLostError:
                    logger.warning("lost the worker of %s, attempt %d", model, attempt)
                    await self._pool.wait_until_gone(worker, _WORKER_END_S)
        message = f"the worker of model {model!r} ended twice while it had this request"
        raise ApiError(503, message, code="worker_lost", retry_after_s=1)

    # Forwarding

    async def _forward(
        self, request: web.Request, worker: Worker, body: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        session = self._session(worker)
        try:
            answer = await session.post(f"http://worker{request.path}", data=body, headers=headers)
        except aiohttp.ClientError as error:
            raise _WorkerLostError from error
        async with answer:
            if answer.content_type == "text/event-stream":
                return await self._relay_stream(request, answer)
            try:
                whole = await answer.read()
            except aiohttp.ClientError as error:
                raise _WorkerLostError from error
            return web.Response(status=answer.status, body=whole, content_type="application/json")

    async def _relay_stream(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        try:
            async for frames in _whole_frames(answer.content):
                await response.write(frames)
        except _WorkerLostError:
            error = ApiError(503, "the model's worker ended unexpectedly", code="worker_lost")
            await response.write(error.stream_frames())
        await response.write_eof()
        return response

    def _session(self, worker: Worker) -> aiohttp.ClientSession:
        path = worker.spec.socket_path
        session = self._sessions.get(path)
        if session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path, limit=0),
                timeout=_WORKER_TIMEOUT,
                auto_decompress=False,
                read_bufsize=2**16,
            )
            self._sessions[path] = session
            worker.exited.add_done_callback(lambda _: self._close_session(path))
        return session

    def _close_session(self, path: str) -> None:
        closing = asyncio.ensure_future(self._sessions.pop(path).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # Requests

    async def _read_body(self, request: web.Request) -> bytes:
        try:
            return await asyncio.wait_for(request.read(), self._settings.body_timeout_s)
        except asyncio.TimeoutError:
            seconds = self._settings.body_timeout_s
            message = f"the request's body did not arrive within {seconds:g} s"
            raise ApiError(408, message, code="request_timeout") from None

    def _known(self, model: str) -> str:
        if model not in self._pool.experts:
            known = ", ".join(self._pool.experts)
            message = f"the model {model[:200]!r} does not exist; this server has: {known}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return model

    def _model_card(self, name: str) -> dict[str, Any]:
        expert = self._pool.experts[name]
        return {
            "id": name,
            "object": "model",
            "created": int(self._started),
            "owned_by": "capibara-axion",
            "domain": expert.domain,
            "description": expert.description,
            "status": {"value": self._pool.state_of(name)},
        }

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._api_key is not None and request.path != "/health":
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._api_key):
                message = "a valid API key is needed: send it as 'Authorization: Bearer <key>'"
                raise ApiError(401, message, code="invalid_api_key")
        return await handler(request)


async def _whole_frames(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The stream's bytes, cut only between events, so that an error can follow at any time."""
    partial = b""
    try:
        async for data in content.iter_any():
            head, end, partial = (partial + data).rpartition(_FRAME_END)
            if end:
                yield head + end
    except aiohttp.ClientError as error:
        raise _WorkerLostError from error


def _model_named_in(body: bytes) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        given = type(fields).__name__
        message = f"the body must be a JSON object, got a {given}"
        raise ApiError(400, message, code="invalid_json")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        message = f"'model' must be the name of a model, got {json.dumps(model)[:100]}"
        raise ApiError(400, message, code="invalid_model", param="model")
    return model


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        failure, headers = error, error.headers()
    except web.HTTPException as error:
        failure, headers = _from_http(request, error), {}
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    except ConnectionResetError:
        raise  # the client left while it was being answered
    except Exception:
        logger.exception("handling %s %s failed", request.method, request.path)
        failure, headers = ApiError(500, "an internal error; see the server's log"), {}
    return web.Response(
        status=failure.status,
        body=failure.body(),
        content_type="application/json",
        headers=headers,
    )


def _from_http(request: web.Request, error: web.HTTPException) -> ApiError:
    match error.status:
        case 404:
            return ApiError(404, f"there is no route {request.path}", code="route_not_found")
        case 405:
            message = f"{request.method} is not allowed on {request.path}"
            return ApiError(405, message, code="method_not_allowed")
        case 413:
            return ApiError(413, "the request's body is too large", code="body_too_large")
    return ApiError(error.status, error.reason or "the request failed")
