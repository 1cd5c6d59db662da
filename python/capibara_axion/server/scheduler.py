# SPDX-License-Identifier: Apache-2.0
"""Which model is loaded when, on which cores, and which request may run: pure policy.

`Scheduler.handle(event, now)` takes one event and returns the effects that its owner must carry
out, in order. Nothing here reads a clock, waits, or does I/O, so every situation can be replayed
in a test. `now` is any monotonic time in seconds and must never go back.

A model goes  unloaded -> loading -> ready -> draining -> unloaded.  A load that fails, and a worker
that dies again and again, leads to `failed`, which turns into `unloaded` after a pause. `draining`
lasts until the worker is gone, so a model never has two workers. Every start of a worker has a
number, its generation; reports about an earlier generation are ignored. Every state but `unloaded`
and an unused `ready` has a deadline:

    loading     load_timeout_s, then the worker is killed and the load has failed
    ready       idle_unload_s after the last request; while at work, `hang.py` watches it
    draining    stop_grace_s, then the worker is killed
    failed      the pause, 10 s doubling to 5 min, then it may be loaded again
    a request   its client's deadline and queue_timeout_s
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from capibara_axion.server import events
from capibara_axion.server.cores import CoreLeases, Holder
from capibara_axion.server.events import Effect, Event
from capibara_axion.server.models import Model, ModelState, ModelView
from capibara_axion.server.placement import Placement
from capibara_axion.server.policy import ModelSettings, Policy

# Clients believe a Retry-After of at most a minute.
_LONGEST_RETRY_AFTER_S = 60


class Scheduler:
    """The policy and its state. Not thread-safe: one owner calls it.

    Args:
        models: all models, in the order of the configuration, with their settings.
        policy: limits.
        budget: bytes that all workers together may take; None: any number.
    """

    def __init__(
        self, models: Mapping[str, ModelSettings], policy: Policy, budget: int | None = None
    ) -> None:
        self._policy = policy
        self._models = {
            name: Model(name, settings, size=settings.size) for name, settings in models.items()
        }
        self._model_of: dict[int, str] = {}
        self._leases = CoreLeases(policy.cores, policy.cores_wait_s)
        self._placement = Placement(self._models, policy, budget)
        self._shutting_down = False

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take in one event and return the effects it calls for, in order.

        Raises:
            KeyError: the event names a model that does not exist.
        """
        effects: list[Effect] = []
        match event:
            case events.RequestArrived():
                self._arrive(event, now, effects)
            case events.RequestEnded(request, served):
                self._end(request, served, now)
            case events.LoadSucceeded(model, generation):
                self._loaded(self._models[model], generation, now)
            case events.LoadFailed():
                self._load_failed(self._models[event.model], event, now, effects)
            case events.WorkerExited(model, generation):
                self._worker_exited(self._models[model], generation, now)
            case events.WorkerHung(model, generation):
                self._hung(self._models[model], generation, now, effects)
            case events.CoresSet(name, generation):
                model_ = self._models.get(name)  # it may have been removed meanwhile
                if model_ is not None and model_.generation == generation:
                    self._leases.confirm(name)
            case events.MemoryKnown(name, size):
                if name in self._models:
                    self._models[name].size = size
            case events.BudgetKnown(size):
                self._placement.budget = size
            case events.UnloadRequested(model):
                self._unload_requested(self._models[model])
            case events.Reconfigured():
                self._reconfigure(event, now, effects)
            case events.ShutdownRequested():
                self._shutting_down = True
                for model_ in self._models.values():
                    self._refuse_waiting(model_, "the server is shutting down", effects)
            case events.Tick():
                pass
        self._advance(now, effects)
        return effects

    def next_deadline(self, now: float) -> float | None:
        """When a `Tick` is due next, or None if nothing depends on time."""
        policy = self._policy
        due: list[float] = []
        for model in self._models.values():
            due += [self._expiry(model, request) for request in model.waiting]
            match model.state:
                case ModelState.LOADING:
                    due.append(model.since + policy.load_timeout_s)
                case ModelState.FAILED:
                    due.append(model.retry_at)
                case ModelState.DRAINING:
                    due.append(model.since + policy.stop_grace_s)
                case ModelState.READY if not model.running:
                    due.append(self._placement.idle_deadline(model))
                    due.append(model.last_used + policy.cores_linger_s)
        due += self._placement.deadlines()
        if (cores := self._leases.deadline(now)) is not None:
            due.append(cores)
        return min((at for at in due if now < at < math.inf), default=None)

    def view(self) -> dict[str, ModelView]:
        return {
            name: model.view(self._leases.of(name), self._placement.is_warm(model))
            for name, model in self._models.items()
        }

    # Events about requests

    def _arrive(self, event: events.RequestArrived, now: float, effects: list[Effect]) -> None:
        model = self._models[event.model]
        policy, limit = self._policy, model.settings.max_requests
        refusal: tuple[str, str, float] | None = None
        if self._shutting_down:
            refusal = "the server is shutting down", "shutting_down", 1
        elif model.removed:
            refusal = f"the model {model.name!r} is being removed", "model_removed", 60
        elif event.deadline is not None and event.deadline <= now:
            refusal = "the client's own deadline has passed", "deadline_exceeded", 1
        elif event.replay:
            pass  # it has been admitted by all the limits before
        elif len(self._model_of) >= policy.max_requests:
            reason = f"the server already has {policy.max_requests} requests in hand"
            refusal = reason, "too_many_requests", 1
        elif len(model.waiting) + len(model.running) >= limit:
            reason = f"the model {model.name!r} already has {limit} requests in hand"
            refusal = reason, "too_many_requests", 1
        elif model.state is ModelState.FAILED and now < model.retry_at:
            refusal = model.failure, "model_load_failed", model.retry_at - now
        if refusal is not None:
            effects.append(_refuse(event.request, *refusal))
            return
        model.waiting[event.request] = (
            now,
            math.inf if event.deadline is None else event.deadline,
        )
        model.keep_alive_s = event.keep_alive_s
        model.parked = False
        self._model_of[event.request] = event.model

    def _end(self, request: int, served: bool, now: float) -> None:
        name = self._model_of.pop(request, None)
        if name is None:
            return
        model = self._models[name]
        model.waiting.pop(request, None)
        if request in model.running:
            model.running.discard(request)
            model.last_used = now
        if served:
            model.crashed, model.failures = False, 0
        self._forget_removed(model)

    # Events about workers

    def _loaded(self, model: Model, generation: int, now: float) -> None:
        if model.generation == generation and model.state is ModelState.LOADING:
            model.enter(ModelState.READY, now)
            model.last_used = now

    def _load_failed(
        self, model: Model, event: events.LoadFailed, now: float, effects: list[Effect]
    ) -> None:
        if model.generation != event.generation or not model.has_worker:
            return
        if model.state is ModelState.DRAINING:  # stopped while loading: already accounted for
            self._worker_exited(model, event.generation, now)
            return
        self._leases.gone(model.name)
        if event.crashed:
            self._crash(model, event.reason, now)
        else:
            self._fail(model, event.reason, now)
        if model.state is ModelState.FAILED:
            self._refuse_waiting(model, event.reason, effects, "model_load_failed")
        self._forget_removed(model)

    def _worker_exited(self, model: Model, generation: int, now: float) -> None:
        if model.generation != generation or not model.has_worker:
            return
        self._leases.gone(model.name)
        if model.state is ModelState.DRAINING and not model.hung:
            if model.failure:
                self._fail(model, model.failure, now)
            else:
                model.enter(ModelState.UNLOADED, now)
        else:
            # Its requests learn of it from their connections; those that had sent nothing come
            # back as replays.
            self._crash(model, "its worker ended unexpectedly, several times in a row", now)
        model.hung = False
        self._forget_removed(model)

    def _hung(self, model: Model, generation: int, now: float, effects: list[Effect]) -> None:
        if model.generation == generation and model.state is ModelState.READY:
            model.hung = True
            self._stop(model, "hung", now, effects, force=True)

    def _crash(self, model: Model, reason: str, now: float) -> None:
        """Its worker died without a word: the first time it may be replaced at once."""
        if model.crashed:
            self._fail(model, reason, now)
        else:
            model.crashed = True
            model.enter(ModelState.UNLOADED, now)

    def _fail(self, model: Model, reason: str, now: float) -> None:
        model.failures += 1
        model.failure = reason
        model.retry_at = now + self._policy.backoff(model.failures)
        model.enter(ModelState.FAILED, now)

    # Events from operators

    def _unload_requested(self, model: Model) -> None:
        model.parked = True
        if model.state in (ModelState.READY, ModelState.LOADING):
            model.retiring = "requested"

    def _reconfigure(self, event: events.Reconfigured, now: float, effects: list[Effect]) -> None:
        self._policy = event.policy
        for name, settings in event.models.items():
            model = self._models.get(name)
            if model is None:
                self._models[name] = Model(name, settings, size=settings.size)
                continue
            model.settings, model.removed = settings, False
            if name in event.reload:
                model.size = settings.size
                model.crashed, model.failures, model.retry_at = False, 0, now
                if model.state in (ModelState.READY, ModelState.LOADING):
                    model.retiring = "reconfigured"
        for name in [name for name in self._models if name not in event.models]:
            model = self._models[name]
            model.removed = True
            model.retiring = "removed"
            self._refuse_waiting(model, f"the model {name!r} was removed", effects, "model_removed")
            self._forget_removed(model)
        # The order of the configuration decides between equals.
        for name in event.models:
            self._models[name] = self._models.pop(name)
        self._placement.reconfigure(event.policy)

    def _forget_removed(self, model: Model) -> None:
        if model.removed and not model.has_worker and not model.running:
            self._models.pop(model.name, None)

    # Policy

    def _advance(self, now: float, effects: list[Effect]) -> None:
        for model in list(self._models.values()):
            if model.state is ModelState.FAILED and now >= model.retry_at:
                model.failure = ""
                model.enter(ModelState.UNLOADED, now)
            self._expire_waiting(model, now, effects)
            self._expire_state(model, now, effects)
        if not self._shutting_down:
            plan = self._placement.plan(now)
            for name, cause in plan.stop:
                victim = self._models[name]
                self._stop(victim, cause, now, effects, force=victim.state is ModelState.LOADING)
            for name, reason in plan.refuse:
                self._refuse_waiting(self._models[name], reason, effects, "insufficient_memory")
            for name, cause in plan.start:
                self._models[name].load_cause = cause
                self._models[name].enter(ModelState.LOADING, now)
            for model in self._models.values():
                self._retire(model, now, effects)
        self._lease(now, effects)
        for model in self._models.values():
            self._admit(model, now, effects)

    def _expire_waiting(self, model: Model, now: float, effects: list[Effect]) -> None:
        timeout = self._policy.queue_timeout_s
        for request in [r for r in model.waiting if now >= self._expiry(model, r)]:
            _, deadline = model.waiting[request]
            self._drop(model, request)
            if now >= deadline:
                reason = "the client's own deadline passed while it waited for the model"
                effects.append(_refuse(request, reason, "deadline_exceeded", 1))
            else:
                reason = f"waited {timeout:g} s for the model without getting its turn"
                effects.append(_refuse(request, reason, "queue_timeout", 30))

    def _expiry(self, model: Model, request: int) -> float:
        arrived, deadline = model.waiting[request]
        return min(deadline, arrived + self._policy.queue_timeout_s)

    def _expire_state(self, model: Model, now: float, effects: list[Effect]) -> None:
        policy = self._policy
        if model.state is ModelState.LOADING and now >= model.since + policy.load_timeout_s:
            model.failure = f"the model was not loaded within {policy.load_timeout_s:g} s"
            self._refuse_waiting(model, model.failure, effects, "model_load_failed")
            self._stop(model, "load timeout", now, effects, force=True)
        elif model.state is ModelState.DRAINING and now >= model.since + policy.stop_grace_s:
            model.since = now  # and again after as long, should the kernel not obey
            effects.append(events.StopWorker(model.name, model.generation, "unresponsive", True))
        elif model.state is ModelState.LOADING and (self._shutting_down or model.retiring):
            cause = "shutdown" if self._shutting_down else model.retiring
            self._stop(model, cause, now, effects, force=True)
        elif model.state is ModelState.READY and not model.running:
            if self._shutting_down:
                self._stop(model, "shutdown", now, effects)
            elif not model.waiting and now >= self._placement.idle_deadline(model):
                self._stop(model, "idle", now, effects)

    def _retire(self, model: Model, now: float, effects: list[Effect]) -> None:
        if model.retiring and model.state is ModelState.READY and not model.running:
            self._stop(model, model.retiring, now, effects)

    def _lease(self, now: float, effects: list[Effect]) -> None:
        linger = self._policy.cores_linger_s
        holders = [
            Holder(
                model.name,
                model.settings.least_cores,
                model.settings.most_cores,
                model.state is ModelState.LOADING,
            )
            for model in self._models.values()
            if model.state is ModelState.LOADING
            or model.running
            or (
                model.state is ModelState.READY
                and (model.waiting or now < model.last_used + linger)
            )
        ]
        self._leases.divide(holders, now)
        for model in self._models.values():
            if model.state is ModelState.LOADING and not model.started:
                model.started = True
                model.generation += 1
                cores = self._leases.started(model.name)
                effects.append(
                    events.StartWorker(model.name, model.generation, cores, model.load_cause)
                )
        for name, cores in self._leases.requests(now):
            if self._models[name].state is ModelState.READY:
                effects.append(events.SetCores(name, self._models[name].generation, cores))

    def _admit(self, model: Model, now: float, effects: list[Effect]) -> None:
        if model.state is not ModelState.READY or model.retiring or not model.waiting:
            return
        if not self._leases.may_compute(model.name, now):
            return
        for request in model.waiting:
            model.running.add(request)
            effects.append(events.Admit(request, model.name))
        model.waiting.clear()

    def _stop(
        self, model: Model, cause: str, now: float, effects: list[Effect], force: bool = False
    ) -> None:
        model.enter(ModelState.DRAINING, now)
        self._placement.stopped(cause, now)
        effects.append(events.StopWorker(model.name, model.generation, cause, force))

    def _refuse_waiting(
        self, model: Model, reason: str, effects: list[Effect], code: str = "shutting_down"
    ) -> None:
        for request in list(model.waiting):
            self._drop(model, request)
            effects.append(_refuse(request, reason, code, self._policy.backoff_s))

    def _drop(self, model: Model, request: int) -> None:
        del model.waiting[request]
        del self._model_of[request]


def _refuse(request: int, reason: str, code: str, retry_after_s: float) -> events.Refuse:
    whole = min(_LONGEST_RETRY_AFTER_S, max(1, math.ceil(retry_after_s)))
    return events.Refuse(request, reason, code, whole)
