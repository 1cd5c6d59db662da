# SPDX-License-Identifier: Apache-2.0
"""The pool of loaded models: the one owner of the scheduler, carrying out its effects.

Everything runs in one event loop, so there are no locks: state changes only inside `_handle`,
which never waits. Slow work runs in tasks that report back with events. A load is such a task and
belongs to the pool: it goes on when the client that caused it leaves.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capibara_axion.server import events
from capibara_axion.server.config import ExpertConfig, ServerConfig
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import Launcher, Worker, WorkerError, WorkerSpec
from capibara_axion.server.scheduler import Policy, Scheduler

logger = logging.getLogger(__name__)

_STOP_GRACE_S = 10.0


@dataclass(frozen=True)
class CorePlan:
    """Cores in equal groups, one engine to a group as long as there are groups.

    Engines whose threads share cores slow each other down many times over, so an engine gets
    `cores / max_loaded` of them even while it is alone. With more engines than cores they share.
    """

    cpus: tuple[int, ...]
    threads: int

    @classmethod
    def divide(cls, cpus: Sequence[int], engines: int) -> CorePlan:
        return cls(tuple(cpus), max(1, len(cpus) // engines))

    @property
    def slots(self) -> int:
        return len(self.cpus) // self.threads

    def cores_of(self, slot: int, threads: int) -> tuple[int, ...]:
        """The cores of a slot; if it has fewer than `threads`, the following ones as well."""
        first = slot * self.threads
        wanted = min(threads, len(self.cpus))
        return tuple(self.cpus[(first + i) % len(self.cpus)] for i in range(wanted))


@dataclass
class _Counters:
    loads: int = 0
    load_failures: int = 0
    unloads: Counter[str] = field(default_factory=Counter)
    worker_exits: int = 0
    requests: int = 0
    last_load_s: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class ModelPool:
    """Loads and unloads models so that requests can run. Create it inside the event loop.

    Args:
        config: experts and limits.
        launcher: starts the workers.
        runtime_dir: a private directory for their sockets.
        log_level: handed to the workers.
    """

    def __init__(
        self, config: ServerConfig, launcher: Launcher, runtime_dir: Path, log_level: str
    ) -> None:
        settings, lazy = config.server_config, config.lazy_loading
        max_loaded = min(lazy.max_loaded_experts, len(config.experts))
        self.experts: dict[str, ExpertConfig] = {e.expert_id: e for e in config.experts}
        self._cores = CorePlan.divide(_available_cpus(), max_loaded)
        self._scheduler = Scheduler(
            self.experts,
            Policy(
                max_loaded=max_loaded,
                max_requests=settings.max_requests,
                idle_unload_s=lazy.auto_unload_after_s,
                load_timeout_s=settings.load_timeout_s,
                queue_timeout_s=settings.queue_timeout_s,
                retry_after_s=settings.load_retry_after_s,
                core_slots=self._cores.slots,
            ),
        )
        self._launcher = launcher
        self._runtime_dir = runtime_dir
        self._log_level = log_level
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._request_ids = itertools.count(1)
        self._turns: dict[int, asyncio.Future[Worker]] = {}
        self._workers: dict[str, Worker] = {}
        self._lives: dict[Worker, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = {name: _Counters() for name in self.experts}

    @asynccontextmanager
    async def worker_for(self, model: str) -> AsyncIterator[Worker]:
        """Wait until the model is loaded and the request may run; hold the model meanwhile.

        Raises:
            ApiError: 429 or 503 when the request cannot be served now.
            KeyError: there is no such model.
        """
        request = next(self._request_ids)
        turn: asyncio.Future[Worker] = self._loop.create_future()
        turn.add_done_callback(_mark_seen)
        self._turns[request] = turn
        self._counters[model].requests += 1
        try:
            self._handle(events.RequestArrived(request, model))
            yield await turn
        finally:
            del self._turns[request]
            self._handle(events.RequestEnded(request))

    async def wait_until_gone(self, worker: Worker, timeout_s: float) -> None:
        """Wait until a worker's end has been dealt with, so that it is not handed out again."""
        if (life := self._lives.get(worker)) is not None:
            await asyncio.wait((life,), timeout=timeout_s)

    async def shut_down(self, drain_s: float) -> None:
        """Admit nothing more, let running requests end for up to `drain_s`, stop all workers."""
        self._handle(events.ShutdownRequested())
        try:
            await asyncio.wait_for(self._all_tasks_done(), drain_s)
        except asyncio.TimeoutError:
            logger.warning("stopping with requests still running after %g s", drain_s)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for worker in self._workers.values():
                worker.kill()
            await self._all_tasks_done()

    def statistics(self) -> dict[str, Any]:
        """Per model: state, requests waiting and running, loads, unloads by cause, process."""
        now = self._loop.time()
        models = {}
        for name, view in self._scheduler.view().items():
            counters = self._counters[name]
            worker = self._workers.get(name)
            slot = view.core_slot
            threads = self._threads(self.experts[name])
            models[name] = {
                "state": view.state.value,
                "state_age_s": round(now - view.since, 3) if view.since else None,
                "waiting": view.waiting,
                "running": view.running,
                "requests_total": counters.requests,
                "loads_total": counters.loads,
                "load_failures_total": counters.load_failures,
                "unloads_total": dict(counters.unloads),
                "worker_exits_total": counters.worker_exits,
                "last_load_s": counters.last_load_s,
                "pid": worker.pid if worker else None,
                "cpus": None if slot is None else list(self._cores.cores_of(slot, threads)),
                "engine": counters.details if worker else None,
                "failure": view.failure or None,
            }
        return models

    def state_of(self, model: str) -> str:
        state: str = self._scheduler.view()[model].state.value
        return state

    # Effects

    def _handle(self, event: events.Event) -> None:
        for effect in self._scheduler.handle(event, self._loop.time()):
            match effect:
                case events.Admit(request, model):
                    self._settle(request, self._workers[model])
                case events.Refuse(request, reason, code, retry_after_s):
                    status = 429 if code == "too_many_requests" else 503
                    error = ApiError(status, reason, code=code, retry_after_s=retry_after_s)
                    self._settle(request, error)
                case events.StartWorker(model, generation, core_slot):
                    self._stops[model] = asyncio.Event()
                    self._spawn(self._run_worker(model, generation, core_slot))
                case events.StopWorker(model, _, cause, force):
                    self._counters[model].unloads[cause] += 1
                    logger.info("unloading %s (%s)", model, cause)
                    self._stops[model].set()
                    if force and model in self._workers:
                        self._workers[model].kill()
        self._set_timer()

    def _settle(self, request: int, outcome: Worker | ApiError) -> None:
        turn = self._turns[request]
        if turn.done():  # its client left; RequestEnded follows
            return
        if isinstance(outcome, ApiError):
            turn.set_exception(outcome)
        else:
            turn.set_result(outcome)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._scheduler.next_deadline()
        self._timer = (
            None if deadline is None else self._loop.call_at(deadline, self._handle, events.Tick())
        )

    async def _run_worker(self, model: str, generation: int, core_slot: int) -> None:
        """The life of one worker: load, then serve until told to stop or gone."""
        stop, counters = self._stops[model], self._counters[model]
        try:
            worker = await self._load(model, self._spec(model, generation, core_slot), stop)
        except WorkerError as error:
            if not stop.is_set():
                counters.load_failures += 1
                logger.error("loading %s failed: %s", model, error)
            reason = f"model {model!r} could not be loaded: {error}"
            self._handle(events.LoadFailed(model, generation, reason))
            return
        self._handle(events.LoadSucceeded(model, generation))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((worker.exited, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await worker.stop(_STOP_GRACE_S)
        else:
            stopped.cancel()
            counters.worker_exits += 1
            code = worker.exited.result()
            logger.error("the worker of %s ended by itself with code %d", model, code)
        self._forget(model, worker)
        self._handle(events.WorkerExited(model, generation))

    async def _load(self, model: str, spec: WorkerSpec, stop: asyncio.Event) -> Worker:
        began = self._loop.time()
        logger.info("loading %s", model)
        worker = await self._launcher.launch(spec)
        self._workers[model] = worker
        task = asyncio.current_task()
        assert task is not None
        self._lives[worker] = task
        if stop.is_set():  # before there was a process to kill
            worker.kill()
        counters = self._counters[model]
        try:
            counters.details = await worker.ready()
        except WorkerError:
            worker.kill()
            await worker.exited
            self._forget(model, worker)
            raise
        counters.loads += 1
        counters.last_load_s = round(self._loop.time() - began, 3)
        logger.info("loaded %s in %.2f s", model, counters.last_load_s)
        return worker

    def _forget(self, model: str, worker: Worker) -> None:
        del self._workers[model], self._lives[worker]

    def _spec(self, model: str, generation: int, core_slot: int) -> WorkerSpec:
        expert = self.experts[model]
        index = list(self.experts).index(model)
        return WorkerSpec(
            expert=expert,
            socket_path=str(self._runtime_dir / f"{index}.{generation}.sock"),
            cpus=self._cores.cores_of(core_slot, self._threads(expert)),
            log_level=self._log_level,
        )

    def _threads(self, expert: ExpertConfig) -> int:
        return expert.threads or max(self._cores.threads, expert.ranks)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a worker's task failed", exc_info=error)

    async def _all_tasks_done(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _mark_seen(turn: asyncio.Future[Worker]) -> None:
    # A refusal may come while the client is leaving; then nobody awaits it, and asyncio complains.
    if not turn.cancelled():
        turn.exception()


def _available_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
