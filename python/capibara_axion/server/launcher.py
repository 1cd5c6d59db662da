# SPDX-License-Identifier: Apache-2.0
"""Starts worker processes from a forkserver that has the heavy modules imported already.

A worker is any function `target(spec, connection)` that serves HTTP on `spec.socket_path`, speaks
the protocol of `control` over the connection, and runs until it gets SIGTERM. Tests start a small
stand-in through the same class.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from capibara_axion.server import processes
from capibara_axion.server.config import ExpertConfig
from capibara_axion.server.control import Beat, Channel, Cores, Failed, Message, Phase, Ready
from capibara_axion.server.logs import LogFormat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is told.

    Attributes:
        expert: the model to load.
        socket_path: where to listen; in a directory that only this user may enter.
        cpus: the cores that the engine computes on at first, one thread on each.
        log_level: "debug", "info", "warning" or "error".
        log_format: "text" or "json".
        allowed_media_domains: hosts that http(s) URLs of images may name; without any, images come
            as data: URLs only.
        max_images: in one request.
        max_image_bytes: of one image, as a file.
    """

    expert: ExpertConfig
    socket_path: str
    cpus: tuple[int, ...]
    log_level: str
    log_format: LogFormat = "text"
    allowed_media_domains: tuple[str, ...] = ()
    max_images: int = 16
    max_image_bytes: int = 20 * 1024 * 1024


WorkerMain = Callable[[WorkerSpec, Connection], None]


class WorkerError(Exception):
    """A worker could not be started or is gone; the message is fit for an API client.

    Attributes:
        crashed: it ended without saying why, so that trying again may help.
    """

    def __init__(self, message: str, *, crashed: bool = False) -> None:
        super().__init__(message)
        self.crashed = crashed


class Worker:
    """A started worker process, as the gateway sees it. Create it inside the event loop.

    Attributes:
        pid: of the process, which also is its process group once it runs.
        spec: what it was told.
        exited: its exit code, once it has ended.
        phase: how far its load has come; "ready" after it.
        beat: the last one, and `beat_at`, in the event loop's time, when it came.
        on_phase, on_beat: called with each new one.
    """

    def __init__(self, process: ForkServerProcess, channel: Channel, spec: WorkerSpec) -> None:
        loop = asyncio.get_running_loop()
        assert process.pid is not None
        self.pid: int = process.pid
        self.spec = spec
        self.exited: asyncio.Future[int] = loop.create_future()
        self.phase = "starting the process"
        self.beat: Beat | None = None
        self.beat_at = loop.time()
        self.on_phase: Callable[[str], None] | None = None
        self.on_beat: Callable[[Beat], None] | None = None
        self._process = process
        self._channel = channel
        self._report: asyncio.Future[Ready | Failed] = loop.create_future()
        self._cores_asked: deque[asyncio.Future[None]] = deque()
        loop.add_reader(process.sentinel, self._on_exit)
        loop.add_reader(channel.fileno(), self._on_message)

    async def ready(self) -> dict[str, Any]:
        """Wait until the worker serves; return the details that it reports.

        Raises:
            WorkerError: it reported a failure or exited.
        """
        await self._reply_or_exit(self._report)
        match self._report.result():
            case Failed(reason):
                raise WorkerError(reason)
            case Ready(details):
                return details

    async def set_cores(self, cpus: Sequence[int]) -> None:
        """Have the engine compute on these cores; returns once it does, after a step at the latest.

        A worker that is loading answers when it has loaded.

        Args:
            cpus: at least as many as the model has ranks.

        Raises:
            ValueError: too few cores.
            WorkerError: the worker is gone, or has been stopped for long.
        """
        ranks = self.spec.expert.ranks
        if len(cpus) < ranks:
            raise ValueError(f"cpus: expected {ranks} or more, got {list(cpus)}")
        if self.exited.done() or not self._channel.send(Cores(tuple(cpus))):
            raise WorkerError("the worker process takes no messages", crashed=True)
        reply = asyncio.get_running_loop().create_future()
        self._cores_asked.append(reply)
        await self._reply_or_exit(reply)

    def terminate(self) -> None:
        """Ask the worker to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the worker and all processes it started, now."""
        if not self.exited.done():
            processes.kill_group(self.pid)
            self._signal(signal.SIGKILL)

    def _signal(self, sig: signal.Signals) -> None:
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    async def _reply_or_exit(self, reply: asyncio.Future[Any]) -> None:
        await asyncio.wait((reply, self.exited), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            code = self.exited.result()
            raise WorkerError(f"the worker process ended with code {code}", crashed=True)

    def _on_message(self) -> None:
        try:
            self._handle(self._channel.receive())
        except EOFError:  # `exited` follows
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()

    def _handle(self, message: Message) -> None:
        match message:
            case Phase(phase):
                self._enter(phase)
            case Ready() | Failed():
                self._report.set_result(message)
                self._enter("ready" if isinstance(message, Ready) else "failed")
            case Beat():
                self.beat, self.beat_at = message, asyncio.get_running_loop().time()
                if self.on_beat is not None:
                    self.on_beat(message)
            case Cores():
                reply = self._cores_asked.popleft()
                if not reply.done():  # else its asker has gone
                    reply.set_result(None)

    def _enter(self, phase: str) -> None:
        self.phase = phase
        if self.on_phase is not None:
            self.on_phase(phase)

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        while self._channel.pending():  # what it said last may tell why it ended
            self._on_message()
        if not self._channel.closed:
            loop.remove_reader(self._channel.fileno())
            self._channel.close()
        code = self._process.exitcode
        self._process.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.spec.socket_path)
        self.exited.set_result(-1 if code is None else code)


class Launcher:
    """Owns the forkserver.

    Args:
        target: the worker's main function; it must be importable by name.
        preload: modules that the forkserver imports, once, before it starts the first worker.
        environment: variables for the forkserver and with it for all workers; a value of None
            removes the variable. The gateway's own environment stays as it is.
    """

    def __init__(
        self,
        target: WorkerMain,
        *,
        preload: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._target = target
        self._environment = dict(environment or {})
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        # One thread for all starts: a start blocks while the forkserver is still importing, and
        # the kernel ties the forkserver's life to the thread that created it.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="launcher")

    def warm_up(self) -> None:
        """Begin to start the forkserver; returns at once."""
        self._executor.submit(self._ensure_forkserver).add_done_callback(_log_failure)

    async def launch(self, spec: WorkerSpec) -> Worker:
        """Start a worker process. It may have to wait until the forkserver has its imports.

        Raises:
            WorkerError: no process could be started.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=self._target, args=(spec, theirs), name=f"worker-{spec.expert.expert_id}"
        )
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._start, process)
        except Exception as error:
            ours.close()
            message = f"no worker process could be started: {error!r}"
            raise WorkerError(message, crashed=True) from error
        finally:
            theirs.close()
        return Worker(process, Channel(ours), spec)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ensure_forkserver(self) -> None:
        from multiprocessing import forkserver

        with _environment(self._environment):
            forkserver.ensure_running()

    def _start(self, process: ForkServerProcess) -> None:
        with _environment(self._environment):  # it may have to start a new forkserver
            process.start()


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    try:
        _apply(changes)
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.error("the forkserver could not be started: %r", error)
