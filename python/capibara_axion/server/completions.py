# SPDX-License-Identifier: Apache-2.0
"""A completion request on its way to a worker and back.

Bytes go to the model's worker as they came, and its bytes come back as they are. A request whose
worker is lost before it has sent anything is sent again, once; a stream that had begun ends with an
error event and `[DONE]`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from capibara_axion.server.calls import REQUEST_ID_HEADER, Call
from capibara_axion.server.control import LOAD_HEADER, QUEUE_HEADER, STREAM_DEFAULT_HEADER
from capibara_axion.server.errors import ApiError
from capibara_axion.server.event_stream import EventStream
from capibara_axion.server.launcher import Worker
from capibara_axion.server.metrics import CancelPhase, Metrics
from capibara_axion.server.pool import ModelPool
from capibara_axion.server.pool_records import Turn

logger = logging.getLogger(__name__)

_FRAME_END = b"\n\n"
# A worker may think for long before its first byte; its death is noticed by the connection.
_WORKER_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
# Between a worker's connection breaking and its process ending.
_WORKER_END_S = 5.0


class _WorkerLostError(Exception):
    """The worker's connection broke; whether something had been sent is the stream's to know."""


@dataclass
class _Session:
    http: aiohttp.ClientSession
    users: int = 0


class WorkerSessions:
    """An HTTP client session for every worker.

    It is closed when the worker has ended and nobody uses the session any more: who still reads
    from a connection that aiohttp closes would never be told.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._closing: set[asyncio.Future[None]] = set()

    @contextmanager
    def to(self, worker: Worker) -> Iterator[aiohttp.ClientSession]:
        """The worker's session, for as long as the block runs."""
        path = worker.spec.socket_path
        session = self._sessions.get(path)
        if session is None:
            session = self._sessions[path] = _Session(
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(path, limit=0),
                    timeout=_WORKER_TIMEOUT,
                    auto_decompress=False,
                    read_bufsize=2**16,
                )
            )
            worker.exited.add_done_callback(lambda _: self._close_if_done(worker))
        session.users += 1
        try:
            yield session.http
        finally:
            session.users -= 1
            self._close_if_done(worker)

    def _close_if_done(self, worker: Worker) -> None:
        path = worker.spec.socket_path
        session = self._sessions.get(path)
        if session is not None and not session.users and worker.exited.done():
            del self._sessions[path]
            closing = asyncio.ensure_future(session.http.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


class Forwarder:
    """Takes completion requests to the workers of a pool.

    Args:
        pool: where the models are.
        sessions: connections to the workers.
        metrics: where replays, cancels and overhead are counted.
    """

    def __init__(self, pool: ModelPool, sessions: WorkerSessions, metrics: Metrics) -> None:
        self._pool = pool
        self._sessions = sessions
        self._metrics = metrics

    async def answer(
        self,
        request: web.Request,
        call: Call,
        *,
        request_id: str,
        began: float,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Have the call answered.

        Args:
            request: the client's.
            call: what it asks.
            request_id: known to the client and the worker.
            began: when the request's first byte was seen, by `time.perf_counter`.
            headers: for the response.

        Raises:
            ApiError: the call was refused or failed, and nothing has been sent.
        """
        journey = _Journey(self, request, call, request_id, began, headers)
        try:
            response = await journey.run()
        except asyncio.CancelledError:
            self._metrics.client_cancelled(call.model, journey.phase)
            raise
        except ConnectionResetError:  # it was cut off, for it took nothing, or has left just now
            self._metrics.client_cancelled(call.model, journey.phase)
            return journey.response
        except ApiError:
            self._metrics.request_ended(call.model, "refused")
            raise
        self._metrics.request_ended(call.model, journey.outcome)
        return response


class _Journey:
    """One call's way through the gateway.

    Attributes:
        phase: where it is.
        outcome: "ok" or "error", once it is over.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        request: web.Request,
        call: Call,
        request_id: str,
        began: float,
        headers: Mapping[str, str],
    ) -> None:
        settings = forwarder._pool.settings
        self.phase: CancelPhase = "queued"
        self.outcome = "ok"
        self._forwarder = forwarder
        self._request = request
        self._call = call
        self._request_id = request_id
        self._began = began
        self._headers = headers
        ping_s = settings.ping_interval_s
        if call.timeout_s is not None:
            ping_s = min(ping_s, call.timeout_s / 2)
        self._stream = EventStream(
            request, headers, ping_s=ping_s, send_timeout_s=settings.send_timeout_s
        )

    @property
    def response(self) -> web.StreamResponse:
        """What a streaming client has been sent so far."""
        return self._stream.response

    async def run(self) -> web.StreamResponse:
        if not self._call.stream:
            return await self._with_replay()
        async with self._stream.kept_alive():
            try:
                return await self._with_replay()
            except ApiError as error:
                if not self._stream.opened:
                    raise
                return await self._fail(error)

    async def _with_replay(self) -> web.StreamResponse:
        call, pool = self._call, self._forwarder._pool
        # The comments keep a streaming client waiting as long as we like.
        deadline_s = None if call.stream else call.timeout_s
        for attempt in (1, 2):
            async with pool.turn(
                call.model,
                deadline_s=deadline_s,
                keep_alive_s=call.keep_alive_s,
                replay=attempt > 1,
            ) as turn:
                try:
                    with self._forwarder._sessions.to(turn.worker) as session:
                        return await self._forward(turn, session)
                except _WorkerLostError:
                    logger.warning(
                        "lost the worker of %s, attempt %d",
                        call.model,
                        attempt,
                        extra={"request_id": self._request_id},
                    )
            self.phase = "queued"
            await pool.wait_until_gone(turn.worker, _WORKER_END_S)
            if attempt == 1:
                self._forwarder._metrics.replayed(call.model)
        message = f"the worker of model {call.model!r} ended twice while it had this request"
        raise ApiError(503, message, code="worker_lost", retry_after_s=1)

    async def _forward(self, turn: Turn, session: aiohttp.ClientSession) -> web.StreamResponse:
        self.phase = "waiting"
        headers = {
            "Content-Type": "application/json",
            STREAM_DEFAULT_HEADER: "1" if self._call.stream else "0",
            REQUEST_ID_HEADER: self._request_id,
            QUEUE_HEADER: f"{turn.queue_s:.6f}",
            LOAD_HEADER: f"{turn.load_s:.6f}",
        }
        overhead = time.perf_counter() - self._began - turn.queue_s
        self._forwarder._metrics.gateway_overhead(max(0.0, overhead))
        try:
            answer = await session.post(
                f"http://worker{self._request.path}", data=self._call.body, headers=headers
            )
        except aiohttp.ClientError as error:
            raise _WorkerLostError from error
        async with answer:
            if answer.content_type == "text/event-stream":
                return await self._relay(answer, turn)
            try:
                whole = await answer.read()
            except aiohttp.ClientError as error:
                raise _WorkerLostError from error
            turn.served = answer.status < 500
            if self._stream.opened:
                return await self._fail_with(answer.status, whole)
            if answer.status >= 400:
                self.outcome = "error"
            return web.Response(
                status=answer.status,
                body=whole,
                content_type="application/json",
                headers=self._headers,
            )

    async def _relay(self, answer: aiohttp.ClientResponse, turn: Turn) -> web.StreamResponse:
        try:
            async for frames in _whole_frames(answer.content):
                if self.phase == "waiting":
                    self.phase, turn.served = "streaming", True
                await self._stream.write(frames)
        except _WorkerLostError:
            if self.phase == "waiting":
                raise
            self.outcome = "error"
            error = ApiError(503, "the model's worker ended unexpectedly", code="worker_lost")
            await self._stream.fail(error)
            return self._stream.response
        await self._stream.response.write_eof()
        return self._stream.response

    async def _fail(self, error: ApiError) -> web.StreamResponse:
        self.outcome = "error"
        await self._stream.fail(error)
        return self._stream.response

    async def _fail_with(self, status: int, body: bytes) -> web.StreamResponse:
        """Bring an error that came with a status code into a stream that has begun."""
        if status >= 400:
            self.outcome = "error"
        await self._stream.write(b"data: " + body + b"\n\ndata: [DONE]\n\n")
        await self._stream.response.write_eof()
        return self._stream.response


async def _whole_frames(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The stream's bytes, cut only between events, so that an error can follow at any time."""
    partial = b""
    try:
        async for data in content.iter_any():
            head, end, partial = (partial + data).rpartition(_FRAME_END)
            if end:
                yield head + end
    except aiohttp.ClientError as error:
        raise _WorkerLostError from error
