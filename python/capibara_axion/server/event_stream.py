# SPDX-License-Identifier: Apache-2.0
"""A server-sent event stream to a client: opened late, kept alive, always brought to an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from capibara_axion.server.errors import ApiError

_PING = b": ping\n\n"
_SMALL = 16384  # bytes, below what a transport takes before it has its writers wait


class EventStream:
    """What is written to one client.

    Its headers go out with the first bytes, so that what fails before still has a status code. When
    nothing was written for `ping_s`, headers included, a comment is: the client, and whatever is
    between, then knows that the request is alive.

    Args:
        request: the client's.
        headers: of the response.
        ping_s: the longest silence in seconds.
        send_timeout_s: a client that takes nothing for so many seconds is cut off.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        ping_s: float,
        send_timeout_s: float,
    ) -> None:
        self._request = request
        self._ping_s = ping_s
        self._send_timeout_s = send_timeout_s
        self._loop = asyncio.get_running_loop()
        self._wrote_at = self._loop.time()
        self._opening = asyncio.Lock()
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **headers,
            }
        )

    @property
    def opened(self) -> bool:
        return self.response.prepared

    async def write(self, frames: bytes) -> None:
        """Send whole events.

        Raises:
            ConnectionResetError: the client has left, or takes nothing.
        """
        if not self.response.prepared:
            async with self._opening:
                if not self.response.prepared:
                    await self.response.prepare(self._request)
        self._wrote_at = self._loop.time()
        transport = self._request.transport
        if len(frames) < _SMALL and transport and not transport.get_write_buffer_size():
            # All of a stream whose client keeps up: it cannot have to wait, and a deadline would
            # cost as much as the rest.
            await self.response.write(frames)
            return
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self.response.write(frames)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client takes nothing") from None

    async def fail(self, error: ApiError) -> None:
        """End an opened stream with an error event and `[DONE]`."""
        await self.write(error.stream_frames())
        await self.response.write_eof()

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Write comments into silences while the block runs."""
        task = self._loop.create_task(self._ping())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionResetError):
                await task

    async def _ping(self) -> None:
        while True:
            due = self._wrote_at + self._ping_s
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            else:
                await self.write(_PING)
