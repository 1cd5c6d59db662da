# SPDX-License-Identifier: Apache-2.0
"""A request as a worker has it, and the times that its answer reports."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from capibara_axion.server.control import (
    LOAD_HEADER,
    QUEUE_HEADER,
    REQUEST_ID_HEADER,
    STREAM_DEFAULT_HEADER,
)


@dataclass
class WorkerRequest:
    """What the gateway sent, and what came of it so far.

    Attributes:
        body: JSON, an object; the gateway has seen to it.
        stream_default: whether the answer is streamed where the body does not say.
        request_id: of the gateway, or None.
        queue_s: seconds that it waited for its turn.
        load_s: seconds of those that it waited for the model's load.
    """

    body: bytes
    stream_default: bool = False
    request_id: str | None = None
    queue_s: float = 0.0
    load_s: float = 0.0
    _arrived: float = field(default_factory=lambda: time.time())
    _first: float | None = None
    _last: float = 0.0
    _tokens: int = 0

    @classmethod
    def of(cls, headers: Mapping[str, str], body: bytes) -> WorkerRequest:
        """A request by the headers that the gateway adds."""
        return cls(
            body,
            headers.get(STREAM_DEFAULT_HEADER) == "1",
            headers.get(REQUEST_ID_HEADER),
            float(headers.get(QUEUE_HEADER, 0)),
            float(headers.get(LOAD_HEADER, 0)),
        )

    def generated(self, tokens: int, first_at: float | None = None) -> None:
        """Note that the engine gave `tokens` more tokens.

        Args:
            tokens: of all choices together.
            first_at: Unix time of the request's very first token, where known; else it is now.
        """
        if tokens:
            self._last = time.time()
            if self._first is None:
                self._first = self._last if first_at is None else first_at
            self._tokens += tokens

    def with_timings(self, answer: str) -> str:
        """`answer`, which ends with a JSON object, with the times so far added to that object."""
        end = answer.rindex("}")
        timings = json.dumps(self._timings(), separators=(",", ":"))
        return f'{answer[:end]},"timings":{timings}{answer[end:]}'

    def _timings(self) -> dict[str, float | None]:
        ttft = rate = None
        if self._first is not None:
            ttft = round(self._first - self._arrived, 4)
            if self._tokens > 1 and self._last > self._first:
                rate = round((self._tokens - 1) / (self._last - self._first), 2)
        return {
            "queue_s": self.queue_s,
            "load_s": self.load_s,
            "ttft_s": ttft,
            "total_s": round(time.time() - self._arrived, 4),
            "tokens_per_s": rate,
        }
