# SPDX-License-Identifier: Apache-2.0
"""The public HTTP application: who may do what, which expert answers, and errors in one shape.

Everything about text happens in the workers. The gateway looks into a request only to learn which
model it is for.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from capibara_axion.server import page
from capibara_axion.server.calls import REQUEST_ID_HEADER, Call, read_call, request_id_of
from capibara_axion.server.completions import Forwarder, WorkerSessions
from capibara_axion.server.errors import ApiError
from capibara_axion.server.metrics import Metrics
from capibara_axion.server.models import ModelState
from capibara_axion.server.operations import Operations
from capibara_axion.server.pool import ModelPool
from capibara_axion.server.routing import Candidate, Decision, route

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

AUTO = "auto"
_MODEL_HEADER = "X-Capibara-Model"
_ROUTE_HEADER = "X-Capibara-Route"

# What anybody may ask: load balancers and supervisors, and browsers for the page.
_OPEN = frozenset({"/health", "/livez", "/readyz"}) | page.PATHS
_ADMIN = frozenset({"/models/load", "/models/unload"})
_COMPLETIONS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_ID = web.RequestKey("capibara_request_id", str)


class Gateway:
    """Request handlers over one pool; `application` makes an app for each listener.

    Args:
        pool: where the models are.
        api_key: what clients must send as a bearer token, or None to let everybody in.
        admin_key: what operators must send to load and unload; None: nobody may.
        metrics: what is counted.
    """

    def __init__(
        self,
        pool: ModelPool,
        api_key: str | None,
        admin_key: str | None,
        metrics: Metrics,
    ) -> None:
        sessions = WorkerSessions()
        self.operations = Operations(pool, sessions, metrics, api_key is not None)
        self._metrics = metrics
        self._pool = pool
        self._forwarder = Forwarder(pool, sessions, metrics)
        self._api_key = _bytes(api_key)
        self._admin_key = _bytes(admin_key)
        self._created = int(time.time())
        self._decisions: deque[dict[str, Any]] = deque(maxlen=20)

    def application(self, *, stream_by_default: bool) -> web.Application:
        """An application whose completions are streamed, or not, unless the request says."""

        async def completion(request: web.Request) -> web.StreamResponse:
            return await self._completion(request, stream_by_default)

        app = web.Application(
            client_max_size=self._pool.settings.max_body_bytes,
            middlewares=[_errors_as_json, self._authenticate],
        )
        app.on_response_prepare.append(_name_the_request)
        for path in _COMPLETIONS:
            app.router.add_post(path, completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        self.operations.add_to(app)
        page.add_to(app)
        if not stream_by_default:  # once is enough
            app.cleanup_ctx.append(self.operations.watch_event_loop)
        if self._pool.settings.cors_origins:
            _allow_origins(
                app, self._pool.settings.cors_origins, bool(self._pool.settings.allow_credentials)
            )
        return app

    async def _completion(
        self, request: web.Request, stream_by_default: bool
    ) -> web.StreamResponse:
        began = time.perf_counter()
        call = await read_call(request, self._pool.settings, stream_by_default)
        headers = {}
        if call.model == AUTO and AUTO not in self._pool.experts:
            decision = self._route(call)
            headers = {_MODEL_HEADER: decision.model, _ROUTE_HEADER: decision.header()}
        else:
            self.operations.known(call.model)
        return await self._forwarder.answer(
            request, call, request_id=request[_ID], began=began, headers=headers
        )

    def _route(self, call: Call) -> Decision:
        view = self._pool.view()
        candidates = [
            Candidate(
                name=name,
                domain=expert.domain,
                priority=expert.priority,
                resident=view[name].state is ModelState.READY,
                max_model_len=expert.max_model_len,
                busy=view[name].waiting + view[name].running,
            )
            for name, expert in self._pool.experts.items()
        ]
        began = time.perf_counter()
        decision = route(call.fields, candidates)
        took_us = round((time.perf_counter() - began) * 1e6)
        call.send_to(decision.model)
        self._metrics.routed(decision.model)
        routed = self.operations.routed
        routed["total"] += 1
        routed["by_model"][decision.model] = routed["by_model"].get(decision.model, 0) + 1
        self._decisions.append(
            {"model": decision.model, "reasons": list(decision.reasons), "took_us": took_us}
        )
        routed["last"] = list(self._decisions)
        return decision

    async def _models(self, _: web.Request) -> web.Response:
        models = [self._model_card(name) for name in self._pool.experts]
        return web.json_response({"object": "list", "data": models})

    async def _model(self, request: web.Request) -> web.Response:
        name = self.operations.known(request.match_info["model"])
        return web.json_response(self._model_card(name))

    def _model_card(self, name: str) -> dict[str, Any]:
        expert = self._pool.experts[name]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "capibara-axion",
            "domain": expert.domain,
            "description": expert.description,
            "status": {"value": self._pool.state_of(name)},
        }

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _ADMIN:
            self._let_in_operator(request)
        elif (
            self._api_key is not None
            and request.path not in _OPEN
            and not (_holds(request, self._api_key) or _holds(request, self._admin_key))
        ):
            raise _unauthorized("a valid API key is needed")
        return await handler(request)

    def _let_in_operator(self, request: web.Request) -> None:
        if self._admin_key is None:
            message = (
                "loading and unloading need an admin key, and this server has none: "
                "start it with CAPIBARA_AXION_ADMIN_KEY set"
            )
            raise ApiError(403, message, code="no_admin_key")
        if not _holds(request, self._admin_key):
            raise _unauthorized("the admin key is needed")


def _bytes(key: str | None) -> bytes | None:
    return None if key is None else key.encode()


def _holds(request: web.Request, key: bytes | None) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given = token.strip().encode("utf-8", "surrogateescape")
    return key is not None and scheme.lower() == "bearer" and hmac.compare_digest(given, key)


def _unauthorized(what: str) -> ApiError:
    message = f"{what}: send it as 'Authorization: Bearer <key>'"
    return ApiError(401, message, code="invalid_api_key")


def _allow_origins(app: web.Application, origins: list[str], credentials: bool) -> None:
    import aiohttp_cors  # needed by few

    options = aiohttp_cors.ResourceOptions(
        allow_credentials=credentials, expose_headers="*", allow_headers="*"
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route_ in list(app.router.routes()):
        cors.add(route_)


async def _name_the_request(request: web.Request, response: web.StreamResponse) -> None:
    if _ID in request:
        response.headers[REQUEST_ID_HEADER] = request[_ID]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[_ID] = request_id_of(request)
    try:
        return await handler(request)
    except ApiError as error:
        failure, headers = error, error.headers()
    except web.HTTPException as error:
        failure, headers = _from_http(request, error), {}
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    except ConnectionResetError:
        # The client left while it was being answered: there is nobody to tell, and nothing to log.
        raise asyncio.CancelledError from None
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
