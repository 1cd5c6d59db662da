# SPDX-License-Identifier: Apache-2.0
"""Starts worker processes from a forkserver that has the heavy modules imported already.

A worker is any function `target(spec, status)` that serves HTTP on `spec.socket_path`. It reports
once through `status` (see `report_ready` and `report_failure`) and runs until it gets SIGTERM.
Tests start a small stand-in through the same class.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from capibara_axion.server import processes
from capibara_axion.server.config import ExpertConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is told.

    Attributes:
        expert: the model to load.
        socket_path: where to listen; in a directory that only this user may enter.
        cpus: the cores that the engine computes on, one thread on each.
        log_level: "debug", "info", "warning" or "error".
    """

    expert: ExpertConfig
    socket_path: str
    cpus: tuple[int, ...]
    log_level: str


WorkerMain = Callable[[WorkerSpec, Connection], None]


class WorkerError(Exception):
    """A worker could not be started; the message is fit for an API client."""


def report_ready(status: Connection, details: Mapping[str, Any]) -> None:
    """Tell the gateway, from the worker, that its socket accepts requests."""
    status.send_bytes(json.dumps({"ready": True, "details": dict(details)}).encode())


def report_failure(status: Connection, reason: str) -> None:
    """Tell the gateway, from the worker, why it cannot serve."""
    status.send_bytes(json.dumps({"ready": False, "reason": reason}).encode())


class Worker:
    """A started worker process, as the gateway sees it."""

    def __init__(self, process: ForkServerProcess, status: Connection, spec: WorkerSpec) -> None:
        loop = asyncio.get_running_loop()
        assert process.pid is not None
        self.pid: int = process.pid
        self.spec = spec
        self.exited: asyncio.Future[int] = loop.create_future()
        self._process = process
        self._report: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._status = status
        loop.add_reader(process.sentinel, self._on_exit)
        loop.add_reader(status.fileno(), self._on_report)

    async def ready(self) -> dict[str, Any]:
        """Wait until the worker serves; return the details that it reports.

        Raises:
            WorkerError: it reported a failure or exited.
        """
        await asyncio.wait((self._report, self.exited), return_when=asyncio.FIRST_COMPLETED)
        if not self._report.done():
            raise WorkerError(f"the worker process ended with code {self.exited.result()}")
        report = self._report.result()
        if not report["ready"]:
            raise WorkerError(report["reason"])
        details: dict[str, Any] = report["details"]
        return details

    async def stop(self, grace_s: float) -> None:
        """Ask the worker to end, and end it with its children if it has not after `grace_s`."""
        self._signal(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=grace_s)
        self.kill()
        await self.exited

    def kill(self) -> None:
        """End the worker and all processes it started, now."""
        if not self.exited.done():
            processes.kill_group(self.pid)
            self._signal(signal.SIGKILL)

    def _signal(self, sig: signal.Signals) -> None:
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def _on_report(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status.fileno())
        with contextlib.suppress(EOFError):  # it exited without a word: `exited` tells
            self._report.set_result(json.loads(self._status.recv_bytes()))
        self._status.close()

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        code = self._process.exitcode
        with contextlib.suppress(OSError):
            loop.remove_reader(self._status.fileno())
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
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=self._target, args=(spec, sender), name=f"worker-{spec.expert.expert_id}"
        )
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._start, process)
        except Exception as error:
            receiver.close()
            raise WorkerError(f"no worker process could be started: {error!r}") from error
        finally:
            sender.close()
        return Worker(process, receiver, spec)

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
