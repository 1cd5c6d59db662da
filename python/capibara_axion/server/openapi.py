# SPDX-License-Identifier: Apache-2.0
"""The server's description of itself: an OpenAPI 3.1 document.

It says what clients may rely on. Objects may have more fields than are listed, in requests (vLLM's
own parameters) as in answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

Json = dict[str, Any]


# Docstrings of these classes are descriptions in the document.


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(_Open):
    """What a stream has beside its text."""

    include_usage: bool = False


class Message(_Open):
    """One turn of a conversation."""

    role: str = Field(min_length=1, examples=["user"])
    content: str | list[Json] | None = Field(
        default=None, description="Text, or parts; images as `data:` URLs."
    )


_Tokens = Annotated[list[int], Field(min_length=1)]
_Texts = (
    str
    | Annotated[list[str], Field(min_length=1)]
    | _Tokens
    | Annotated[list[_Tokens], Field(min_length=1)]
)
_Penalty = Annotated[float, Field(ge=-2, le=2)] | None
_Duration = Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?(ms|s|m|h)?$")]
_KeepAlive = Annotated[
    float | _Duration | None,
    Field(
        description="How long the model stays loaded after this request: seconds, or a text such "
        'as "5m"; negative: for ever.'
    ),
]


class GenerationRequest(_Open):
    """What requests for a chat's and a text's completion have in common."""

    model: str = Field(min_length=1, description="An expert, or `auto`: the server chooses one.")
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = Field(
        default=None, description="Default: false on the server's first port, true on its second."
    )
    stream_options: StreamOptions | None = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    keep_alive: _KeepAlive = None


class ChatCompletionRequest(GenerationRequest):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Json | None = Field(
        default=None, examples=[{"type": "json_object"}], description="Also `json_schema`."
    )
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(GenerationRequest):
    """Body of `/v1/completions`."""

    prompt: _Texts
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)


class EmbeddingRequest(_Open):
    """Body of `/v1/embeddings`."""

    model: str = Field(min_length=1)
    input: _Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    keep_alive: _KeepAlive = None


class LoadRequest(_Open):
    """Body of `/models/load`."""

    model: str = Field(min_length=1)
    stream: bool = Field(default=False, description="Report progress as server-sent events.")


class UnloadRequest(_Open):
    """Body of `/models/unload`."""

    model: str = Field(min_length=1)


class ErrorDetails(BaseModel):
    """What went wrong, for a person and for a program."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetails


class Status(_Open):
    """The answer of a health check."""

    status: str


class ModelStatus(_Open):
    """Where a model is in its life."""

    value: str = Field(description="unloaded, loading, ready, draining or failed.")


class Model(_Open):
    """One model of this server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: ModelStatus


class ModelList(_Open):
    """All models of this server."""

    object: Literal["list"]
    data: list[Model]


_SCHEMAS: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    LoadRequest,
    UnloadRequest,
    Error,
    Status,
    ModelList,
)

_ROUTED = ("ChatCompletionRequest", "CompletionRequest")

_ERRORS = {
    400: ("BadRequest", "The request is not valid"),
    401: ("Unauthorized", "No valid API key"),
    403: ("Forbidden", "The server has no admin key, so nobody may do this"),
    404: ("NotFound", "There is no such model, or no such route"),
    405: ("MethodNotAllowed", "The route has no such method"),
    408: ("RequestTimeout", "The body did not arrive in time"),
    413: ("BodyTooLarge", "The body, or an image in it, is too large"),
    429: ("TooManyRequests", "Too many requests wait or run; try again after `Retry-After`"),
    503: ("Unavailable", "The model cannot run now; try again after `Retry-After`"),
}
_WITH_RETRY_AFTER = (429, 503)

_OF_EVERY_ROUTE = (400, 405)
_OF_EVERY_KEY = (401,)
_OF_EVERY_BODY = (408, 413)
_OF_EVERY_MODEL = (404, 429, 503)

_REQUEST_ID: Json = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
# Without a schema: tools disagree on whether it is that of the text or of an event.
_EVENTS: Json = {"text/event-stream": {}}


def document(models: Sequence[str] = (), *, needs_key: bool = True) -> Json:
    """The OpenAPI document, as served under `/openapi.json`.

    Args:
        models: the names that requests may ask for, without `auto`; if empty, the document allows
            any.
        needs_key: whether the server wants an API key. For loading and unloading it always wants
            its admin key.
    """
    _, schemas = models_json_schema(
        [(model, "validation") for model in _SCHEMAS], ref_template="#/components/schemas/{model}"
    )
    definitions: Json = schemas["$defs"]
    for name, schema in definitions.items():
        if models and "model" in schema["properties"]:
            routed = ["auto"] if name in _ROUTED else []
            schema["properties"]["model"]["enum"] = [*models, *routed]
    key: list[Json] = [{"key": []}] if needs_key else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "capibara-axion",
            "version": version("capibara-axion"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _inference_paths(key) | _operations_paths(key) | _admin_paths() | _open_paths(),
        "components": {
            "schemas": definitions,
            "responses": {name: _error(status, text) for status, (name, text) in _ERRORS.items()},
            "headers": {
                "RequestId": {
                    "description": "The request's own `X-Request-Id`, or a new one.",
                    "schema": {"type": "string"},
                },
                "RetryAfter": {
                    "description": "Seconds to wait before another attempt.",
                    "schema": {"type": "integer", "minimum": 0, "maximum": 60},
                },
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "adminKey": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _inference_paths(security: list[Json]) -> Json:
    def post(summary: str, request: str, content: Json) -> Json:
        success = {"description": "The answer", "content": _json({"type": "object"}) | content}
        return {
            "post": _operation(
                summary, success, security=security, request=request, errors=_OF_EVERY_MODEL
            )
        }

    models = _operation("List the models", _ok(_ref("ModelList")), security=security)
    model = _operation("Describe a model", _ok(_ref("Model")), security=security, errors=(404,))
    model["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    return {
        "/v1/chat/completions": post("Answer a conversation", "ChatCompletionRequest", _EVENTS),
        "/v1/completions": post("Continue a text", "CompletionRequest", _EVENTS),
        "/v1/embeddings": post("Embed texts, if the model can", "EmbeddingRequest", {}),
        "/v1/models": {"get": models},
        "/v1/models/{model}": {"get": model},
    }


def _operations_paths(security: list[Json]) -> Json:
    def get(summary: str, content: Json) -> Json:
        success = {"description": "OK", "content": content}
        return {"get": _operation(summary, success, security=security)}

    return {
        "/stats": get("State and counters of the models", _json({"type": "object"})),
        "/running": get("The models in memory", _json({"type": "object"})),
        "/metrics": get("Prometheus' text format", {"text/plain": {"schema": {"type": "string"}}}),
        "/events": get("What the models do; does not end by itself", _EVENTS),
        "/openapi.json": get("This document", _json({"type": "object"})),
    }


def _admin_paths() -> Json:
    def post(summary: str, request: str, content: Json, errors: Iterable[int]) -> Json:
        success = {"description": "Done", "content": _json({"type": "object"}) | content}
        return {
            "post": _operation(
                summary,
                success,
                security=[{"adminKey": []}],
                request=request,
                errors=(403, *errors),
            )
        }

    return {
        "/models/load": post(
            "Load a model; answered, or the events end, when that is done",
            "LoadRequest",
            _EVENTS,
            _OF_EVERY_MODEL,
        ),
        "/models/unload": post(
            "Unload a model when its requests have ended", "UnloadRequest", {}, (404,)
        ),
    }


def _open_paths() -> Json:
    def get(summary: str, errors: Json) -> Json:
        operation = _operation(summary, _ok(_ref("Status")))
        operation["responses"] |= errors
        return {"get": operation}

    page = {"description": "OK", "content": {"text/html": {"schema": {"type": "string"}}}}
    no = {"503": {"description": "No", "content": _json(_ref("Status"))}}
    return {
        "/health": get("Whether the server takes requests", no),
        "/livez": get("Whether the process lives", {}),
        "/readyz": get("Whether the scheduler moves", no),
        "/ui/": {"get": _operation("A page to chat, to watch and to operate", page)},
    }


def _operation(
    summary: str,
    success: Json,
    *,
    security: list[Json] | None = None,
    request: str | None = None,
    errors: Iterable[int] = (),
) -> Json:
    """One method of one route.

    Args:
        security: what keys it wants; None if it never wants one.
        request: the schema of its body.
        errors: statuses beside those that its kind of route has anyway.
    """
    statuses = {*_OF_EVERY_ROUTE, *errors}
    if security:
        statuses.update(_OF_EVERY_KEY)
    if request is not None:
        statuses.update(_OF_EVERY_BODY)
    errors_of_all = {
        str(status): _component("responses", _ERRORS[status][0]) for status in sorted(statuses)
    }
    operation: Json = {
        "summary": summary,
        "security": security or [],
        "responses": {"200": {**success, "headers": _REQUEST_ID}, **errors_of_all},
    }
    if request is not None:
        operation["requestBody"] = {"required": True, "content": _json(_ref(request))}
    return operation


def _error(status: int, text: str) -> Json:
    retry = {"Retry-After": _component("headers", "RetryAfter")}
    return {
        "description": text,
        "headers": _REQUEST_ID | (retry if status in _WITH_RETRY_AFTER else {}),
        "content": _json(_ref("Error")),
    }


def _ok(schema: Json) -> Json:
    return {"description": "OK", "content": _json(schema)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _ref(schema: str) -> Json:
    return _component("schemas", schema)


def _component(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
