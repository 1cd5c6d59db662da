# SPDX-License-Identifier: Apache-2.0
"""What happens in the server, told to whoever listens: for pages, tests and load progress."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

# A listener that reads nothing for so many events loses the oldest.
_BACKLOG = 256


class News:
    """A broadcast within one event loop. Telling never waits."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()

    def tell(self, event: str, **facts: Any) -> None:
        """Send `{"event", "time" (Unix seconds), **facts}` to all who listen now."""
        item = {"event": event, "time": round(time.time(), 3), **facts}
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(item)

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """A queue of the events from now on, until the block is left."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_BACKLOG)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)


async def as_frames(queue: asyncio.Queue[dict[str, Any]], ping_s: float) -> AsyncIterator[bytes]:
    """The events as server-sent events, with a comment whenever nothing happened for `ping_s`."""
    while True:
        item = await _next(queue, ping_s)
        yield b": ping\n\n" if item is None else frame(item)


def frame(fields: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


async def _next(queue: asyncio.Queue[dict[str, Any]], patience_s: float) -> dict[str, Any] | None:
    try:
        return await asyncio.wait_for(queue.get(), patience_s)
    except asyncio.TimeoutError:
        return None
