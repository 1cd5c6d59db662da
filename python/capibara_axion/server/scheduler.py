# SPDX-License-Identifier: Apache-2.0
"""Which model is loaded when, and which request may run: pure policy.

`Scheduler.handle(event, now)` takes one event and returns the effects that its owner must carry
out, in order. Nothing here reads a clock, waits, or does I/O, so every situation can be replayed
in a test. `now` is any monotonic time in seconds and must never go back.

A model goes  unloaded -> loading -> ready -> draining -> unloaded.  A load that fails leads to
`failed`, which turns into `unloaded` after a pause. `draining` lasts until the worker is gone, so
a model never has two workers. Every start of a worker has a number, its generation; reports about
an earlier generation are ignored.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from capibara_axion.server.events import (
    Admit,
    Effect,
    Event,
    LoadFailed,
    LoadSucceeded,
    Refuse,
    RequestArrived,
    RequestEnded,
    ShutdownRequested,
    StartWorker,
    StopWorker,
    Tick,
    WorkerExited,
)


class ModelState(enum.Enum):
    """Where a model is in its life; see the module's text."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Policy:
    """Limits that the scheduler keeps. Times are in seconds.

    Attributes:
        max_loaded: workers that may exist at once, starting and stopping ones included.
        max_requests: requests that may wait or run at once, all models together.
        idle_unload_s: a ready model is unloaded this long after its last request ended.
        load_timeout_s: a load that takes longer has failed.
        queue_timeout_s: a request that has waited longer is refused.
        retry_after_s: pause after a failed load, during which requests are refused.
        core_slots: groups of cores that engines are spread over.
    """

    max_loaded: int
    max_requests: int = 256
    idle_unload_s: float = 300.0
    load_timeout_s: float = 600.0
    queue_timeout_s: float = 600.0
    retry_after_s: float = 10.0
    core_slots: int = 1


@dataclass
class _Model:
    state: ModelState = ModelState.UNLOADED
    generation: int = 0
    core_slot: int = 0
    since: float = 0.0
    last_used: float = 0.0
    failure: str = ""
    waiting: dict[int, float] = field(default_factory=dict)  # request -> arrival, in order
    running: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class ModelView:
    """What the outside may know of a model."""

    state: ModelState
    since: float
    waiting: int
    running: int
    core_slot: int | None
    failure: str


class Scheduler:
    """The policy and its state. Not thread-safe: one owner calls it."""

    def __init__(self, models: Iterable[str], policy: Policy) -> None:
        self._policy = policy
        self._models = {name: _Model() for name in models}
        self._model_of: dict[int, str] = {}
        self._shutting_down = False

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take in one event and return the effects it calls for, in order.

        Raises:
            KeyError: the event names a model that does not exist.
        """
        effects: list[Effect] = []
        match event:
            case RequestArrived(request, model):
                self._arrive(request, model, now, effects)
            case RequestEnded(request):
                self._end(request, now)
            case LoadSucceeded(model, generation):
                self._loaded(self._models[model], generation, now)
            case LoadFailed(model, generation, reason):
                self._load_failed(self._models[model], generation, reason, now, effects)
            case WorkerExited(model, generation):
                self._worker_exited(self._models[model], generation, now)
            case ShutdownRequested():
                self._shutting_down = True
                for entry in self._models.values():
                    self._refuse_waiting(entry, "the server is shutting down", effects)
            case Tick():
                pass
        self._advance(now, effects)
        return effects

    def next_deadline(self) -> float | None:
        """When a `Tick` is due next, or None if nothing depends on time."""
        policy = self._policy
        due: list[float] = []
        for entry in self._models.values():
            if entry.waiting:
                due.append(next(iter(entry.waiting.values())) + policy.queue_timeout_s)
            if entry.state is ModelState.LOADING:
                due.append(entry.since + policy.load_timeout_s)
            elif entry.state is ModelState.FAILED:
                due.append(entry.since + policy.retry_after_s)
            elif entry.state is ModelState.READY and not entry.running:
                due.append(entry.last_used + policy.idle_unload_s)
        return min(due, default=None)

    def view(self) -> dict[str, ModelView]:
        return {
            name: ModelView(
                state=entry.state,
                since=entry.since,
                waiting=len(entry.waiting),
                running=len(entry.running),
                core_slot=entry.core_slot if _has_worker(entry) else None,
                failure=entry.failure,
            )
            for name, entry in self._models.items()
        }

    # Events

    def _arrive(self, request: int, model: str, now: float, effects: list[Effect]) -> None:
        entry = self._models[model]
        if self._shutting_down:
            effects.append(_refuse(request, "the server is shutting down", "shutting_down", 1))
        elif len(self._model_of) >= self._policy.max_requests:
            reason = f"the server already has {self._policy.max_requests} requests in hand"
            effects.append(_refuse(request, reason, "too_many_requests", 1))
        elif entry.state is ModelState.FAILED and not self._pause_over(entry, now):
            remaining = entry.since + self._policy.retry_after_s - now
            effects.append(_refuse(request, entry.failure, "model_load_failed", remaining))
        else:
            entry.waiting[request] = now
            self._model_of[request] = model

    def _end(self, request: int, now: float) -> None:
        model = self._model_of.pop(request, None)
        if model is None:
            return
        entry = self._models[model]
        entry.waiting.pop(request, None)
        entry.running.discard(request)
        entry.last_used = now

    def _loaded(self, entry: _Model, generation: int, now: float) -> None:
        if entry.generation == generation and entry.state is ModelState.LOADING:
            _enter(entry, ModelState.READY, now)
            entry.last_used = now

    def _load_failed(
        self, entry: _Model, generation: int, reason: str, now: float, effects: list[Effect]
    ) -> None:
        if entry.generation != generation:
            return
        if entry.state is ModelState.DRAINING:  # stopped while loading: already accounted for
            self._worker_exited(entry, generation, now)
        elif entry.state is ModelState.LOADING:
            self._fail(entry, reason, now, effects)

    def _worker_exited(self, entry: _Model, generation: int, now: float) -> None:
        if entry.generation != generation or not _has_worker(entry):
            return
        # Running requests learn of it from their connections and end by themselves.
        _enter(entry, ModelState.FAILED if entry.failure else ModelState.UNLOADED, now)

    # Policy

    def _advance(self, now: float, effects: list[Effect]) -> None:
        for name, entry in self._models.items():
            if entry.state is ModelState.FAILED and self._pause_over(entry, now):
                entry.failure = ""
                _enter(entry, ModelState.UNLOADED, now)
            self._expire_waiting(entry, now, effects)
            self._expire_load(name, entry, now, effects)
            self._admit(name, entry, effects)
            self._unload_idle(name, entry, now, effects)
        if not self._shutting_down:
            self._start_wanted(now, effects)

    def _expire_waiting(self, entry: _Model, now: float, effects: list[Effect]) -> None:
        timeout = self._policy.queue_timeout_s
        late = [request for request, arrived in entry.waiting.items() if now >= arrived + timeout]
        for request in late:
            self._drop(entry, request)
            reason = f"waited {timeout:g} s for the model without getting its turn"
            effects.append(_refuse(request, reason, "queue_timeout", self._policy.retry_after_s))

    def _expire_load(self, name: str, entry: _Model, now: float, effects: list[Effect]) -> None:
        timeout = self._policy.load_timeout_s
        if entry.state is ModelState.LOADING and now >= entry.since + timeout:
            entry.failure = f"the model was not loaded within {timeout:g} s"
            self._refuse_waiting(entry, entry.failure, effects, "model_load_failed")
            self._stop(name, entry, "load timeout", now, effects, force=True)

    def _admit(self, name: str, entry: _Model, effects: list[Effect]) -> None:
        if entry.state is not ModelState.READY:
            return
        for request in entry.waiting:
            entry.running.add(request)
            effects.append(Admit(request, name))
        entry.waiting.clear()

    def _unload_idle(self, name: str, entry: _Model, now: float, effects: list[Effect]) -> None:
        if self._shutting_down and entry.state is ModelState.LOADING:
            self._stop(name, entry, "shutdown", now, effects, force=True)
        elif entry.state is ModelState.READY and not entry.running:
            if self._shutting_down:
                self._stop(name, entry, "shutdown", now, effects)
            elif now >= entry.last_used + self._policy.idle_unload_s:
                self._stop(name, entry, "idle", now, effects)

    def _start_wanted(self, now: float, effects: list[Effect]) -> None:
        """Load the models that requests wait for, longest wait first, evicting idle ones."""
        wanted = [
            (next(iter(entry.waiting.values())), name)
            for name, entry in self._models.items()
            if entry.waiting and entry.state is ModelState.UNLOADED
        ]
        resident = sum(_has_worker(entry) for entry in self._models.values())
        room = self._policy.max_loaded - resident
        leaving = sum(entry.state is ModelState.DRAINING for entry in self._models.values())
        for _, name in sorted(wanted):
            if room > 0:
                room -= 1
                self._start(name, self._models[name], now, effects)
            elif leaving > 0:
                leaving -= 1
            else:
                victim = self._least_recently_used_idle()
                if victim is None:
                    return
                self._stop(victim, self._models[victim], "evicted", now, effects)

    def _least_recently_used_idle(self) -> str | None:
        idle = [
            (entry.last_used, name)
            for name, entry in self._models.items()
            if entry.state is ModelState.READY and not entry.running
        ]
        return min(idle)[1] if idle else None

    def _start(self, name: str, entry: _Model, now: float, effects: list[Effect]) -> None:
        load = [0] * self._policy.core_slots
        for other in self._models.values():
            if _has_worker(other):
                load[other.core_slot] += 1
        entry.generation += 1
        entry.core_slot = load.index(min(load))
        _enter(entry, ModelState.LOADING, now)
        effects.append(StartWorker(name, entry.generation, entry.core_slot))

    def _stop(
        self,
        name: str,
        entry: _Model,
        cause: str,
        now: float,
        effects: list[Effect],
        force: bool = False,
    ) -> None:
        _enter(entry, ModelState.DRAINING, now)
        effects.append(StopWorker(name, entry.generation, cause, force))

    def _fail(self, entry: _Model, reason: str, now: float, effects: list[Effect]) -> None:
        entry.failure = reason
        _enter(entry, ModelState.FAILED, now)
        self._refuse_waiting(entry, reason, effects, "model_load_failed")

    def _refuse_waiting(
        self, entry: _Model, reason: str, effects: list[Effect], code: str = "shutting_down"
    ) -> None:
        for request in list(entry.waiting):
            self._drop(entry, request)
            effects.append(_refuse(request, reason, code, self._policy.retry_after_s))

    def _drop(self, entry: _Model, request: int) -> None:
        del entry.waiting[request]
        del self._model_of[request]

    def _pause_over(self, entry: _Model, now: float) -> bool:
        return now >= entry.since + self._policy.retry_after_s


def _has_worker(entry: _Model) -> bool:
    return entry.state in (ModelState.LOADING, ModelState.READY, ModelState.DRAINING)


def _enter(entry: _Model, state: ModelState, now: float) -> None:
    entry.state = state
    entry.since = now


def _refuse(request: int, reason: str, code: str, retry_after_s: float) -> Refuse:
    return Refuse(request, reason, code, max(1, math.ceil(retry_after_s)))
