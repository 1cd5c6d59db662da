# SPDX-License-Identifier: Apache-2.0
"""What a server of ours does while it is measured: loads, evictions, memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from capibara_axion.bench.results import MemorySample, ServerEvent

# /stats costs our server about a millisecond; its own look at the memory is no more frequent.
_POLL_S = 0.5
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5)


@dataclass
class Watch:
    """What was seen so far, in the order of time; both stay empty on other servers."""

    events: list[ServerEvent] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)


@asynccontextmanager
async def watch(
    session: aiohttp.ClientSession, url: str, now: Callable[[], float], key: str | None = None
) -> AsyncIterator[Watch]:
    """Follow `/events` and sample `/stats` while the block runs.

    A server that has no such routes, or means something else by them, is asked once and then left
    alone; nothing that goes wrong here is raised, nor does it end the block.

        async with watch(session, url, client.now, key) as seen:
            ...  # the measurement
        result.events, result.memory = seen.events, seen.memory

    Args:
        session: for connections of its own.
        url: of the server, without a path.
        now: the clock of the samples, in seconds: `Client.now`.
        key: of a client.
    """
    seen = Watch()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    tasks = [
        asyncio.create_task(
            _harmless(_follow, session, f"{url}/events", headers, now, seen.events)
        ),
        asyncio.create_task(_harmless(_sample, session, f"{url}/stats", headers, now, seen.memory)),
    ]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _harmless(following: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, TypeError):
        await following(*arguments)


async def _follow(
    session: aiohttp.ClientSession,
    url: str,
    headers: dict[str, str],
    now: Callable[[], float],
    events: list[ServerEvent],
) -> None:
    async with session.get(url, headers=headers, timeout=_STREAM) as response:
        if response.status != 200 or response.content_type != "text/event-stream":
            return
        async for line in response.content:
            if line.startswith(b"data: "):
                events += _event(now(), json.loads(line[6:]))


def _event(time_s: float, told: dict[str, Any]) -> list[ServerEvent]:
    """The event, if it is one for the record: the phases of a load are its details."""
    kind = told.get("state") if told.get("event") == "state" else told.get("event")
    if not isinstance(kind, str) or "phase" in told:
        return []
    cause = told.get("cause") or told.get("why") or told.get("failure")
    cause = None if cause is None else str(cause)
    return [ServerEvent(time_s=time_s, kind=kind, model=told.get("model"), cause=cause)]


async def _sample(
    session: aiohttp.ClientSession,
    url: str,
    headers: dict[str, str],
    now: Callable[[], float],
    memory: list[MemorySample],
) -> None:
    while True:
        async with session.get(url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status != 200:
                return
            stats = await response.json()
        memory.extend(_samples(now(), stats))
        await asyncio.sleep(_POLL_S)


def _samples(time_s: float, stats: Any) -> list[MemorySample]:
    """All models together, and each that takes some.

    Raises:
        ValueError: these are not our server's statistics.
    """
    try:
        taken = {None: stats["memory"]["measured_bytes"]} | {
            name: model["memory"]["measured_bytes"] for name, model in stats["models"].items()
        }
        return [
            MemorySample(time_s=time_s, bytes=size, model=name)
            for name, size in taken.items()
            if size or name is None
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("no statistics of ours") from error
