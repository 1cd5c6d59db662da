# SPDX-License-Identifier: Apache-2.0
"""A client of OpenAI's protocol that notes when every piece of an answer comes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from capibara_axion.bench import sse
from capibara_axion.bench.results import Request

# What vLLM, llama.cpp and this project know beyond OpenAI's protocol, so that answers have a fixed
# length. Left out for a server that refuses them by name.
_FIXED_LENGTH = {"ignore_eos": True, "min_tokens": 0}
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_ERROR_TEXT = 500


class Exchange:
    """A request with the bytes of its answer, which nobody has looked into while they came.

    Args:
        request: that is filled in.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pings = 0
        self.content_type = ""
        self.arrivals: list[sse.Arrival] = []

    def read(self) -> None:
        """Look into the bytes, fill in the request, and forget them."""
        request, ended = self.request, False
        if self.arrivals:
            request.first_byte_s = self.arrivals[0].at
            request.end_s = self.arrivals[-1].at
        if request.outcome == "ok" and self.content_type != "text/event-stream":
            self._fail(f"not a stream: expected text/event-stream, got {self.content_type}")
            return
        for event in sse.events(self.arrivals):
            if event.is_comment:
                self.pings += 1
            elif event.data == "[DONE]":
                ended = True
            else:
                self._note(event)
        if request.outcome == "ok" and not ended:
            self._fail("broken off: the stream ended without [DONE]")
        self.arrivals = []

    def _note(self, event: sse.Event) -> None:
        request = self.request
        try:
            chunk = json.loads(event.data)
        except json.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self._fail(f"not JSON: {event.data[:_ERROR_TEXT]}")
            return
        if "error" in chunk:
            self._fail(f"error in the stream: {json.dumps(chunk['error'])[:_ERROR_TEXT]}")
        if sse.has_token(chunk):
            request.tokens_s.append(event.at)
        if usage := chunk.get("usage"):
            request.prompt_tokens = usage.get("prompt_tokens")
            request.completion_tokens = usage.get("completion_tokens")
        request.timings = chunk.get("timings") or request.timings

    def _fail(self, error: str) -> None:
        self.request.outcome, self.request.error = "error", error


class Client:
    """Asks one server for streams of a fixed number of tokens.

    Args:
        session: of `http_session`.
        url: of the server, without a path of the protocol.
        api: "chat" or "completions".
        key: sent as a bearer token, if there is one.
        timeout_s: for a whole answer.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        api: str = "chat",
        key: str | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        self._session = session
        self._url = url + _PATHS[api]
        self._api = api
        # A compressed stream would come in pieces of the compressor's making.
        self._headers = {"Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._fixed_length = dict(_FIXED_LENGTH)
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since this object was made, to the microsecond."""
        return round(time.perf_counter() - self._began, 6)

    async def ask(self, exchange: Exchange, prompt: str, tokens: int) -> None:
        """Send a request and wait for its answer's end; nothing is raised if it fails.

        The times that bytes come are noted as soon as this task runs; what they say is for
        `Exchange.read` to find out, so that no JSON is read while others are being timed.
        """
        request = exchange.request
        request.sent_s = self.now()
        try:
            while not await self._attempt(exchange, prompt, tokens):
                request.sent_s = self.now()
        except TimeoutError:
            request.outcome, request.error = "error", "timeout"
        except (aiohttp.ClientError, OSError) as error:
            request.outcome, request.error = "error", f"connection: {error or type(error).__name__}"

    async def _attempt(self, exchange: Exchange, prompt: str, tokens: int) -> bool:
        """Whether it was answered, be it with an error; else it is to be sent again, changed."""
        request, body = exchange.request, self._body(exchange.request.model, prompt, tokens)
        post = self._session.post(
            self._url, json=body, headers=self._headers, timeout=self._timeout
        )
        async with post as response:
            request.headers_s, request.status = self.now(), response.status
            exchange.content_type = response.content_type
            if response.status != 200:
                text = (await response.content.read(_ERROR_TEXT)).decode(errors="replace")
                refused = [name for name in self._fixed_length if name in text]
                if response.status in (400, 422) and refused:
                    for name in refused:
                        self._fixed_length.pop(name, None)
                    return False
                request.outcome, request.error = "error", text
                request.retry_after_s = _seconds(response.headers.get("Retry-After"))
                request.end_s = self.now()
                return True
            while data := await response.content.readany():
                exchange.arrivals.append(sse.Arrival(self.now(), data))
        request.outcome = "ok"
        return True

    def _body(self, model: str, prompt: str, tokens: int) -> dict[str, Any]:
        fixed_length = dict(self._fixed_length)
        if "min_tokens" in fixed_length:
            fixed_length["min_tokens"] = tokens
        asked = (
            {"messages": [{"role": "user", "content": prompt}]}
            if self._api == "chat"
            else {"prompt": prompt}
        )
        return {
            "model": model,
            **asked,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fixed_length,
        }


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections, as many as are wanted, each for one request.

    A server may close one that it has kept at the very moment that it is used again, which would
    look like a failure of the server's.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # a date
        return None
