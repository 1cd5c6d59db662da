# SPDX-License-Identifier: Apache-2.0
"""The pool of loaded models: the one owner of the scheduler, carrying out its effects.

Everything runs in one event loop, so there are no locks: state changes only inside `_handle`,
which never waits. Slow work runs in tasks that report back with events. A load is such a task and
belongs to the pool: it goes on when the client that caused it leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from capibara_axion.server import events
from capibara_axion.server.config import ExpertConfig, ServerConfig, ServerSettings
from capibara_axion.server.control import Beat
from capibara_axion.server.errors import ApiError
from capibara_axion.server.hang import HangDetector
from capibara_axion.server.launcher import Launcher, Worker, WorkerError, WorkerSpec
from capibara_axion.server.ledger import MemoryLedger
from capibara_axion.server.metrics import Metrics
from capibara_axion.server.models import ModelState, ModelView
from capibara_axion.server.news import News
from capibara_axion.server.policy import ModelSettings
from capibara_axion.server.pool_policy import available_cpus, policy_of, settings_of
from capibara_axion.server.pool_records import Counters, Life, Throughput, Turn
from capibara_axion.server.scheduler import Scheduler

logger = logging.getLogger(__name__)

# How often a worker is looked at; its beats come as often.
_WATCH_S = 0.5
# The watcher itself was held up: nothing can be said about workers.
_HELD_UP_S = 2.0

_STATUS_OF = {"too_many_requests": 429, "deadline_exceeded": 408, "model_removed": 404}


class ModelPool:
    """Loads and unloads models so that requests can run. Create it inside the event loop.

    Args:
        config: experts and limits.
        launcher: starts the workers.
        runtime_dir: a private directory for their sockets.
        log_level: handed to the workers.
        memory: knows how much memory models take, and how much there is.
        metrics: where loads and ends of workers are counted.
    """

    def __init__(
        self,
        config: ServerConfig,
        launcher: Launcher,
        runtime_dir: Path,
        log_level: str,
        memory: MemoryLedger,
        metrics: Metrics,
    ) -> None:
        self.experts: dict[str, ExpertConfig] = {e.expert_id: e for e in config.experts}
        self.news = News()
        self._config = config
        self.cpus = available_cpus()
        self._memory = memory
        self._metrics = metrics
        self._scheduler = Scheduler(
            self._settings(config), policy_of(config, len(self.cpus)), memory.budget()
        )
        self._launcher = launcher
        self._runtime_dir = runtime_dir
        self._log_level = log_level
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._request_ids = itertools.count(1)
        self._socket_ids = itertools.count(1)
        self._turns: dict[int, asyncio.Future[Worker]] = {}
        self._lives: dict[str, Life] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = {name: Counters() for name in self.experts}
        self._states: dict[str, str] = {}
        self._memory_task: asyncio.Task[None] | None = None
        self._measuring = asyncio.Lock()

    @property
    def settings(self) -> ServerSettings:
        """The limits that hold now."""
        return self._config.server_config

    def start(self) -> None:
        """Begin to load the models that are kept loaded, and to watch memory."""
        self._handle(events.Tick())
        self._memory_task = self._loop.create_task(self._watch_memory())

    @asynccontextmanager
    async def turn(
        self,
        model: str,
        *,
        deadline_s: float | None = None,
        keep_alive_s: float | None = None,
        replay: bool = False,
    ) -> AsyncIterator[Turn]:
        """Wait until the model is loaded and the request may run; hold the model meanwhile.

        Args:
            model: name of an expert.
            deadline_s: seconds until its client gives up, or None.
            keep_alive_s: seconds that the model stays loaded after it; None: as configured.
            replay: it had a turn before, and lost its worker.

        Raises:
            ApiError: 404, 408, 429 or 503 when the request cannot be served now.
            KeyError: there is no such model.
        """
        request, arrived = next(self._request_ids), self._loop.time()
        future: asyncio.Future[Worker] = self._loop.create_future()
        future.add_done_callback(_mark_seen)
        self._turns[request] = future
        counters = self._counters[model]
        counters.requests += not replay
        deadline = None if deadline_s is None else arrived + deadline_s
        turn: Turn | None = None
        try:
            self._handle(
                events.RequestArrived(request, model, deadline, keep_alive_s, replay),
            )
            worker = await future
            now = self._loop.time()
            began, ended = counters.load_began, min(now, counters.load_ended)
            turn = Turn(worker, now - arrived, max(0.0, ended - max(arrived, began)))
            yield turn
        finally:
            del self._turns[request]
            self._handle(events.RequestEnded(request, turn is not None and turn.served))

    async def wait_until_gone(self, worker: Worker, timeout_s: float) -> None:
        """Wait until a worker's end has been dealt with, so that it is not handed out again."""
        for life in self._lives.values():
            if life.worker is worker and life.task is not None:
                await asyncio.wait((life.task,), timeout=timeout_s)
                return

    def unload(self, model: str) -> None:
        """Unload a model once its running requests have ended.

        Raises:
            KeyError: there is no such model.
        """
        self._handle(events.UnloadRequested(model))

    def reconfigure(self, config: ServerConfig, reload: frozenset[str]) -> None:
        """Go on with another configuration.

        Args:
            config: all of it.
            reload: experts whose loaded engines are out of date.
        """
        self._config = config
        self.experts = {e.expert_id: e for e in config.experts}
        for name in self.experts:
            self._counters.setdefault(name, Counters())
        policy = policy_of(config, len(self.cpus))
        self._memory.reconfigure(config)
        self._handle(events.Reconfigured(self._settings(config), reload, policy))
        self._handle(events.BudgetKnown(self._memory.budget()))

    async def shut_down(self, drain_s: float) -> None:
        """Admit nothing more, let running requests end for up to `drain_s`, stop all workers."""
        self._handle(events.ShutdownRequested())
        try:
            await asyncio.wait_for(self._all_tasks_done(), drain_s)
        except asyncio.TimeoutError:
            logger.warning("stopping with requests still running after %g s", drain_s)
        finally:
            for life in self._lives.values():
                life.stopping = True
                if life.worker is not None:
                    life.worker.kill()
            await self._all_tasks_done()
            if self._timer is not None:
                self._timer.cancel()
            if self._memory_task is not None:
                self._memory_task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._memory_task

    def probe(self) -> None:
        """Have the scheduler move: raises if its state is broken."""
        self._handle(events.Tick())

    def view(self) -> Mapping[str, ModelView]:
        """The scheduler's view of all models."""
        return self._scheduler.view()

    def state_of(self, model: str) -> str:
        return self._scheduler.view()[model].state.value

    def worker_of(self, model: str) -> Worker | None:
        """The worker of a model that is ready, if it is."""
        life = self._lives.get(model)
        ready = self._scheduler.view()[model].state is ModelState.READY
        return life.worker if life is not None and ready else None

    def load_progress(self, model: str) -> dict[str, Any]:
        """How far a load is: what is being done, for how long, and, by memory, which part of it."""
        life = self._lives.get(model)
        worker = life.worker if life is not None else None
        view = self._scheduler.view()[model]
        fraction = None
        if worker is not None and view.state is ModelState.LOADING and view.size:
            fraction = round(min(0.99, self._memory.present(worker.pid) / view.size), 2)
        return {
            "model": model,
            "state": view.state.value,
            "phase": worker.phase if worker is not None else None,
            "elapsed_s": round(self._loop.time() - view.since, 1),
            "fraction": fraction,
        }

    def memory(self) -> dict[str, int]:
        """The budget and what is taken of it, in bytes."""
        return self._memory.totals()

    def report(self, metrics: Metrics) -> None:
        """Bring the gauges up to date."""
        now = self._loop.time()
        for name, view in self._scheduler.view().items():
            account = self._memory.account(name)
            metrics.set_state(name, view.state.value)
            metrics.set_queue_age(name, 0.0 if view.oldest_wait is None else now - view.oldest_wait)
            metrics.set_leased_cores(name, len(view.cores))
            metrics.set_memory(
                name,
                pss=account["measured_bytes"] or 0,
                predicted=account["predicted_bytes"],
            )

    def statistics(self) -> dict[str, Any]:
        """Per model: state, requests waiting and running, loads, unloads by cause, process."""
        now = self._loop.time()
        models = {}
        for name, view in self._scheduler.view().items():
            counters = self._counters[name]
            life = self._lives.get(name)
            worker = life.worker if life else None
            oldest = None if view.oldest_wait is None else round(now - view.oldest_wait, 3)
            models[name] = {
                "state": view.state.value,
                "state_age_s": round(now - view.since, 3) if view.since else None,
                "waiting": view.waiting,
                "running": view.running,
                "oldest_wait_s": oldest,
                "requests_total": counters.requests,
                "loads_total": counters.loads,
                "load_failures_total": counters.load_failures,
                "unloads_total": dict(counters.unloads),
                "worker_exits_total": counters.worker_exits,
                "last_load_s": counters.last_load_s,
                "tokens_per_s": counters.throughput.tokens_per_s if worker else 0.0,
                "pid": worker.pid if worker else None,
                "cpus": [self.cpus[core] for core in view.cores],
                "warm": view.warm,
                "pinned": view.pinned,
                "retiring": view.retiring or None,
                "memory": self._memory.account(name),
                "engine": counters.details if worker else None,
                "failure": view.failure or None,
            }
        return models

    # Effects

    def _handle(self, event: events.Event) -> None:
        for effect in self._scheduler.handle(event, self._loop.time()):
            match effect:
                case events.Admit(request, model):
                    worker = self._lives[model].worker
                    assert worker is not None
                    self._settle(request, worker)
                case events.Refuse(request, reason, code, retry_after_s):
                    status = _STATUS_OF.get(code, 503)
                    error = ApiError(status, reason, code=code, retry_after_s=retry_after_s)
                    self._settle(request, error)
                case events.StartWorker(model, generation, cores, cause):
                    logger.info("loading %s (%s)", model, cause)
                    life = self._lives[model] = Life(generation)
                    counters = self._counters[model]
                    counters.load_began, counters.load_ended = self._loop.time(), float("inf")
                    life.task = self._spawn(self._run_worker(model, life, cores))
                case events.StopWorker(model, _, cause, force):
                    self._stop(model, cause, force)
                case events.SetCores(model, _, cores):
                    self._spawn(self._set_cores(model, self._lives[model], cores))
        self._set_timer()
        self._tell_changes()

    def _stop(self, model: str, cause: str, force: bool) -> None:
        life = self._lives[model]
        if not life.stopping:
            self._counters[model].unloads[cause] += 1
            self._metrics.evicted(model, cause)
        logger.info("unloading %s (%s)", model, cause)
        self.news.tell("unloading", model=model, cause=cause)
        life.stopping = True
        if life.worker is not None:
            (life.worker.kill if force else life.worker.terminate)()

    def _settle(self, request: int, outcome: Worker | ApiError) -> None:
        future = self._turns.get(request)
        if future is None or future.done():  # its client left; RequestEnded follows
            return
        if isinstance(outcome, ApiError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._scheduler.next_deadline(self._loop.time())
        self._timer = (
            None if deadline is None else self._loop.call_at(deadline, self._handle, events.Tick())
        )

    def _tell_changes(self) -> None:
        for name, view in self._scheduler.view().items():
            if self._states.get(name, "unloaded") != view.state.value:
                self._states[name] = view.state.value
                failure = {"failure": view.failure} if view.failure else {}
                self.news.tell("state", model=name, state=view.state.value, **failure)

    # Tasks

    async def _run_worker(self, model: str, life: Life, cores: Sequence[int]) -> None:
        """The life of one worker: load, then serve until it ends, told to or not."""
        counters = self._counters[model]
        try:
            worker = await self._load(model, life, self._spec(model, cores))
        except WorkerError as error:
            counters.load_ended = self._loop.time()
            took = counters.load_ended - counters.load_began
            self._metrics.load_ended(model, "cancelled" if life.stopping else "failed", took)
            if not life.stopping:
                counters.load_failures += 1
                logger.error("loading %s failed: %s", model, error)
            reason = f"model {model!r} could not be loaded: {error}"
            self._forget(model, life)
            self._handle(events.LoadFailed(model, life.generation, reason, error.crashed))
            return
        self._handle(events.LoadSucceeded(model, life.generation))
        self._spawn(self._measure_memory())
        await self._watch(model, life, worker)
        code = worker.exited.result()
        if not life.stopping:
            counters.worker_exits += 1
            logger.error("the worker of %s ended by itself with code %d", model, code)
            self._metrics.engine_restarted(model, "exit")
            self.news.tell("worker ended", model=model, code=code)
        self._forget(model, life)
        self._handle(events.WorkerExited(model, life.generation))

    async def _load(self, model: str, life: Life, spec: WorkerSpec) -> Worker:
        counters = self._counters[model]
        began = counters.load_began
        worker = await self._launcher.launch(spec)
        life.worker = worker
        worker.on_phase = lambda phase: self.news.tell("loading", model=model, phase=phase)
        if life.stopping:  # before there was a process to kill
            worker.kill()
        try:
            counters.details = await worker.ready()
        except WorkerError:
            worker.kill()
            await worker.exited
            raise
        counters.loads += 1
        counters.load_ended = self._loop.time()
        counters.last_load_s = round(counters.load_ended - began, 3)
        self._metrics.load_ended(model, "loaded", counters.last_load_s)
        logger.info("loaded %s in %.2f s", model, counters.last_load_s)
        self.news.tell("loaded", model=model, seconds=counters.last_load_s)
        return worker

    async def _watch(self, model: str, life: Life, worker: Worker) -> None:
        patience = self.settings.hang_timeout_s
        looked = self._loop.time()
        detector = HangDetector(patience, looked)
        throughput = self._counters[model].throughput = Throughput()

        def on_beat(beat: Beat) -> None:
            detector.beat(beat, self._loop.time())
            throughput.beat(beat.tokens, self._loop.time())

        worker.on_beat = on_beat
        while not worker.exited.done():
            await asyncio.wait((worker.exited,), timeout=_WATCH_S)
            now = self._loop.time()
            if now - looked > _WATCH_S + _HELD_UP_S:
                detector.pardon(now)
            looked = now
            if not life.stopping and (why := detector.verdict(now)) is not None:
                logger.error("the worker of %s hangs: %s", model, why)
                self._metrics.engine_restarted(model, "hang")
                self.news.tell("hung", model=model, why=why)
                self._handle(events.WorkerHung(model, life.generation))

    async def _set_cores(self, model: str, life: Life, cores: Sequence[int]) -> None:
        assert life.worker is not None
        try:
            await life.worker.set_cores([self.cpus[core] for core in cores])
        except WorkerError as error:  # it ended; whoever waits for its cores need not wait longer
            logger.debug("cores of %s: %s", model, error)
        self._handle(events.CoresSet(model, life.generation))

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(self._memory.interval_s)
            await self._measure_memory()

    async def _measure_memory(self) -> None:
        async with self._measuring:
            pids = {
                name: life.worker.pid
                for name, life in self._lives.items()
                if life.worker is not None and self._states.get(name) == "ready"
            }
            await asyncio.to_thread(self._memory.measure, pids)
        for name in self.experts:
            self._handle(events.MemoryKnown(name, self._memory.size(name)))
        self._handle(events.BudgetKnown(self._memory.budget()))

    def _forget(self, model: str, life: Life) -> None:
        if self._lives.get(model) is life:
            del self._lives[model]

    def _settings(self, config: ServerConfig) -> dict[str, ModelSettings]:
        return {
            expert.expert_id: settings_of(expert, config, self._memory.size(expert.expert_id))
            for expert in config.experts
        }

    def _spec(self, model: str, cores: Sequence[int]) -> WorkerSpec:
        settings = self.settings
        return WorkerSpec(
            expert=self.experts[model],
            socket_path=str(self._runtime_dir / f"{next(self._socket_ids)}.sock"),
            cpus=tuple(self.cpus[core] for core in cores),
            log_level=self._log_level,
            log_format=settings.log_format,
            allowed_media_domains=tuple(settings.allowed_media_domains),
            max_images=settings.max_images,
            max_image_bytes=settings.max_image_bytes,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a worker's task failed", exc_info=error)

    async def _all_tasks_done(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def _mark_seen(future: asyncio.Future[Worker]) -> None:
    # A refusal may come while the client is leaving; then nobody awaits it, and asyncio complains.
    if not future.cancelled():
        future.exception()
