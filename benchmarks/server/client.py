# SPDX-License-Identifier: Apache-2.0
"""A client that notes when each piece of an answer comes, and gives an operator's orders."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

_POLL_S = 0.01


@dataclass
class Answer:
    """A streamed answer as its client saw it.

    Attributes:
        sent: when the request was, in Unix time.
        began: the same moment by `time.perf_counter`, as all that follows.
        at: when each piece of text came; a server sends one for each token.
        end: when the stream ended.
        usage: tokens as the server counts them.
        timings: what our server says of the answer.
    """

    sent: float = 0.0
    began: float = 0.0
    at: list[float] = field(default_factory=list)
    end: float = 0.0
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None

    @property
    def ttft_s(self) -> float:
        return self.at[0] - self.began

    @property
    def total_s(self) -> float:
        return self.end - self.began

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in pairwise(self.at)]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens after the first over the time that they took."""
        return (len(self.at) - 1) / (self.at[-1] - self.at[0])


class Client:
    """Talks to one OpenAI-compatible server.

    Args:
        url: without a path.
        key: of an operator, for `load` and `unload`.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str = "") -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(self, body: Mapping[str, Any], answer: Answer | None = None) -> Answer:
        """Ask for a stream of exactly `max_tokens` tokens, and read it to its end.

        Args:
            body: with `messages` for a chat, else with `prompt`.
            answer: to be filled while the stream runs, for who wants to look at it meanwhile.

        Raises:
            RuntimeError: the server answered anything else.
        """
        answer = Answer() if answer is None else answer
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        options = {"include_usage": True}
        fields = {"temperature": 0, "ignore_eos": True, "stream_options": options, "stream": True}
        answer.sent, answer.began = time.time(), time.perf_counter()
        async with self._session.post(self._url + path, json=fields | dict(body)) as response:
            if response.status != 200:
                raise RuntimeError(f"{self._url}: {response.status}: {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    _note(answer, json.loads(line[6:]))
        answer.end = time.perf_counter()
        if answer.usage is None or answer.usage["completion_tokens"] != body["max_tokens"]:
            raise RuntimeError(f"expected {body['max_tokens']} tokens, got {answer.usage}")
        return answer

    async def get(self, path: str) -> Any:
        async with self._session.get(self._url + path, headers=self._headers) as response:
            return await response.json()

    async def model(self, name: str) -> dict[str, Any]:
        """What /stats says of a model."""
        found: dict[str, Any] = (await self.get("/stats"))["models"][name]
        return found

    async def load(self, model: str) -> float:
        """Have a model loaded; the seconds that it took, as the server says."""
        return float((await self._order("load", model))["load_s"])

    async def unload(self, model: str) -> None:
        """Have a model unloaded, and wait until it is."""
        await self._order("unload", model)
        while True:
            if (await self.model(model))["state"] == "unloaded":
                return
            await asyncio.sleep(_POLL_S)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[list[dict[str, Any]]]:
        """A list to which everything is added that the server tells while the block runs."""
        found: list[dict[str, Any]] = []
        url = self._url + "/events"
        async with self._session.get(url, headers=self._headers) as response:
            await response.content.readline()  # it listens

            async def read() -> None:
                async for line in response.content:
                    if line.startswith(b"data: "):
                        found.append(json.loads(line[6:]))  # noqa: PERF401

            reading = asyncio.create_task(read())
            try:
                yield found
            finally:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading

    async def _order(self, what: str, model: str) -> dict[str, Any]:
        url, body = f"{self._url}/models/{what}", {"model": model}
        async with self._session.post(url, json=body, headers=self._headers) as response:
            found: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{what} {model}: {response.status}: {found}")
            return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    while True:
        if condition():
            return
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections for clients, as many as they want, each for one request.

    A server that was stopped for a while closes those that it has kept.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


def _note(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        raise RuntimeError(f"the stream failed: {event['error']}")
    answer.usage = event.get("usage") or answer.usage
    answer.timings = event.get("timings") or answer.timings
    for choice in event.get("choices", ()):
        if choice.get("text") or choice.get("delta", {}).get("content"):
            answer.at.append(time.perf_counter())
