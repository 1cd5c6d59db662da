# SPDX-License-Identifier: Apache-2.0
"""The one error shape of the server, as OpenAI's clients expect it."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """An error to be answered over HTTP.

    Attributes:
        status: HTTP status code, 400..599.
        message: what went wrong, for a person.
        code: machine-readable reason such as `model_not_found`, or None.
        param: the request field at fault, or None.
        retry_after_s: whole seconds for the `Retry-After` header, or None for no header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, Any]:
        """The JSON body: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        return json.dumps(self.envelope(), ensure_ascii=False).encode()

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def stream_frames(self) -> bytes:
        """The end of a stream that failed after it had begun: an error event, then `[DONE]`."""
        return b"data: " + self.body() + b"\n\n" + b"data: [DONE]\n\n"


def _error_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
