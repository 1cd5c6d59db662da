# SPDX-License-Identifier: Apache-2.0
"""A completion request as far as the gateway looks into it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from capibara_axion.server.config import ServerSettings
from capibara_axion.server.errors import ApiError

REQUEST_ID_HEADER = "X-Request-Id"
# The official client says in this header how long it waits for a byte.
_CLIENT_TIMEOUT_HEADER = "X-Stainless-Read-Timeout"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
# Parsing more than this is left to a thread, so that it does not hold up other streams.
_PARSE_HERE_BYTES = 256 * 1024


@dataclass
class Call:
    """One completion request.

    Attributes:
        body: the JSON text for the worker.
        model: which expert is to answer; "auto" until it has been routed.
        stream: whether the answer is to be streamed.
        keep_alive_s: how long the model is to stay loaded after it; None: as configured.
        timeout_s: how long the client waits for a byte; None: unknown.
        fields: the body, parsed.
    """

    body: bytes
    model: str
    stream: bool
    keep_alive_s: float | None
    timeout_s: float | None
    fields: dict[str, Any] = field(repr=False)

    def send_to(self, model: str) -> None:
        """Name the expert in place of "auto"."""
        self.model = self.fields["model"] = model
        self.body = json.dumps(self.fields, ensure_ascii=False).encode()


def request_id_of(request: web.Request) -> str:
    """The client's own request id if it is one, else a new one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def read_call(
    request: web.Request, settings: ServerSettings, stream_by_default: bool
) -> Call:
    """Read and look into the body of a completion request.

    Raises:
        ApiError: 408 when it does not arrive in time, 400 when it is not what it must be.
    """
    body = await read_body(request, settings)
    if len(body) > _PARSE_HERE_BYTES:
        fields = await asyncio.to_thread(_parse, body)
    else:
        fields = _parse(body)
    stream = fields.get("stream")
    return Call(
        body=body,
        model=model_named_in(fields),
        stream=stream_by_default if stream is None else stream is True,
        keep_alive_s=_keep_alive(fields.get("keep_alive")),
        timeout_s=_positive(request.headers.get(_CLIENT_TIMEOUT_HEADER)),
        fields=fields,
    )


async def read_fields(request: web.Request, settings: ServerSettings) -> dict[str, Any]:
    """The JSON object that a request's body is.

    Raises:
        ApiError: as `read_call`.
    """
    return _parse(await read_body(request, settings))


async def read_body(request: web.Request, settings: ServerSettings) -> bytes:
    """The bytes of a request's body.

    Raises:
        ApiError: 408 when they do not arrive in time, 400 when they cannot be decoded.
    """
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await request.read()
    except TimeoutError:
        seconds = settings.body_timeout_s
        message = f"the request's body did not arrive within {seconds:g} s"
        raise ApiError(408, message, code="request_timeout") from None
    except web.RequestPayloadError as error:  # a wrong length, or no gzip though the header says so
        message = f"the request's body cannot be read: {error}"
        raise ApiError(400, message, code="invalid_body") from None


def model_named_in(fields: dict[str, Any]) -> str:
    """The value of `model`.

    Raises:
        ApiError: 400 when it is not a name.
    """
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        message = f"'model' must be the name of a model, got {json.dumps(model)[:100]}"
        raise ApiError(400, message, code="invalid_model", param="model")
    return model


def _parse(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        given = type(fields).__name__
        message = f"the body must be a JSON object, got a {given}"
        raise ApiError(400, message, code="invalid_json")
    return fields


def _keep_alive(value: Any) -> float | None:
    """Seconds from a number or a text such as "5m"; negative: for ever."""
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNIT_S[match[2]]
    if not math.isfinite(seconds):
        message = (
            "'keep_alive' must be seconds, or a text such as \"5m\" (units: ms, s, m, h; negative: "
            f"for ever), got {json.dumps(value)[:100]}"
        )
        raise ApiError(400, message, code="invalid_keep_alive", param="keep_alive")
    return seconds


def _positive(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None  # the header is not ours to insist on
    return seconds if math.isfinite(seconds) and seconds > 0 else None
