# SPDX-License-Identifier: Apache-2.0
"""Plays the scheduler's owner: knows which workers exist, and checks every effect against that."""

from __future__ import annotations

from dataclasses import dataclass, field

from capibara_axion.server import events
from capibara_axion.server.events import Event
from capibara_axion.server.models import ModelState
from capibara_axion.server.policy import ModelSettings, Policy
from capibara_axion.server.scheduler import Scheduler


@dataclass
class Owner:
    """The world around a scheduler; `now` is its clock.

    `loading`, `serving` and `stopping` have the workers by model with their generations, `cores`
    what each computes on, `asked` what each has been told to, `waiting` and `running` the requests.
    """

    scheduler: Scheduler
    policy: Policy
    settings: dict[str, ModelSettings]
    budget: int | None = None
    now: float = 0.0
    next_request: int = 0
    loading: dict[str, int] = field(default_factory=dict)
    serving: dict[str, int] = field(default_factory=dict)
    stopping: dict[str, int] = field(default_factory=dict)
    cores: dict[str, frozenset[int]] = field(default_factory=dict)
    asked: dict[str, frozenset[int]] = field(default_factory=dict)
    waiting: dict[int, str] = field(default_factory=dict)
    running: dict[int, str] = field(default_factory=dict)
    replays: set[int] = field(default_factory=set)
    refused: int = 0
    hung: set[str] = field(default_factory=set)
    shut_down: bool = False

    @classmethod
    def of(
        cls, settings: dict[str, ModelSettings], policy: Policy, budget: int | None = None
    ) -> Owner:
        return cls(Scheduler(settings, policy, budget), policy, settings, budget)

    # What can happen

    def arrive(self, model: str, *, replay: bool = False) -> int:
        self.next_request += 1
        request = self.next_request
        self.waiting[request] = model
        if replay:
            self.replays.add(request)
        self.send(events.RequestArrived(request, model, replay=replay))
        return request

    def leave(self, request: int) -> None:
        self.waiting.pop(request, None)
        self.running.pop(request, None)
        self.send(events.RequestEnded(request))

    def serve(self, request: int) -> None:
        del self.running[request]
        self.send(events.RequestEnded(request, served=True))

    def loaded(self, model: str) -> None:
        generation = self.serving[model] = self.loading.pop(model)
        self.send(events.LoadSucceeded(model, generation))

    def load_fails(self, model: str, *, crashed: bool = False) -> None:
        generation = self.loading.pop(model)
        del self.cores[model]
        self.send(events.LoadFailed(model, generation, "broken", crashed))

    def crash(self, model: str) -> None:
        """The worker dies; what runs on it comes back once, as the gateway has it."""
        generation = self.serving.pop(model)
        self._gone(model)
        self.send(events.WorkerExited(model, generation))
        self._bring_back(model)

    def hang(self, model: str) -> None:
        self.hung.add(model)
        self.send(events.WorkerHung(model, self.serving[model]))

    def exits(self, model: str) -> None:
        generation = self.stopping.pop(model)
        self._gone(model)
        self.send(events.WorkerExited(model, generation))
        self._bring_back(model)

    def cores_set(self, model: str) -> None:
        self.cores[model] = self.asked.pop(model)
        self.send(events.CoresSet(model, self.serving.get(model, 0)))

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.send(events.Tick())

    def tick_at_deadline(self) -> bool:
        deadline = self.scheduler.next_deadline(self.now)
        if deadline is None:
            return False
        assert deadline > self.now  # a tick must not repeat itself
        self.now = deadline
        self.send(events.Tick())
        return True

    def stop(self) -> None:
        self.shut_down = True
        self.send(events.ShutdownRequested())

    # What the scheduler wants

    def send(self, event: Event) -> None:
        for effect in self.scheduler.handle(event, self.now):
            match effect:
                case events.Admit(request, model):
                    assert self.waiting.pop(request) == model
                    assert model in self.serving, "admitted to a model that does not serve"
                    self.running[request] = model
                case events.Refuse(request, reason, code, retry_after_s):
                    del self.waiting[request]
                    assert 1 <= retry_after_s <= 60
                    assert reason
                    assert code
                    self.refused += 1
                case events.StartWorker(model, generation, cores, _):
                    assert not self.shut_down, "a worker started during shutdown"
                    assert model not in {**self.loading, **self.serving, **self.stopping}
                    assert cores
                    self.loading[model] = generation
                    self.cores[model] = frozenset(cores)
                case events.StopWorker():
                    self._stop(effect)
                case events.SetCores(model, generation, cores):
                    assert self.serving[model] == generation
                    assert model not in self.asked, "asked again before the answer"
                    self.asked[model] = frozenset(cores)
        self.check()

    def _stop(self, stop: events.StopWorker) -> None:
        model, idle = stop.model, stop.model not in self.running.values()
        if model in self.stopping:
            assert (stop.cause, stop.force) == ("unresponsive", True)
            return
        if model in self.loading:
            assert stop.force
            assert stop.cause == "cancelled" or stop.cause != "evicted"
            if stop.cause == "cancelled":
                assert model not in self.waiting.values(), "cancelled what somebody waits for"
            self.stopping[model] = self.loading.pop(model)
        else:
            assert idle or stop.cause == "hung", "stopped a busy model"
            self.stopping[model] = self.serving.pop(model)

    def _gone(self, model: str) -> None:
        self.cores.pop(model, None)
        self.asked.pop(model, None)
        self.hung.discard(model)

    def _bring_back(self, model: str) -> None:
        for request in [r for r, m in self.running.items() if m == model]:
            self.leave(request)
            if request not in self.replays:
                self.arrive(model, replay=True)

    # What must hold

    def check(self) -> None:
        present = {**self.loading, **self.serving, **self.stopping}
        assert len(present) <= self.policy.max_loaded
        if self.budget is not None:
            assert sum(self.settings[model].size for model in present) <= self.budget
        fresh = [r for r in (*self.waiting, *self.running) if r not in self.replays]
        assert len(fresh) <= self.policy.max_requests
        views = self.scheduler.view()
        for model, view in views.items():
            assert view.running == list(self.running.values()).count(model)
            assert view.waiting == list(self.waiting.values()).count(model)
            there = {
                ModelState.LOADING: self.loading,
                ModelState.READY: self.serving,
                ModelState.DRAINING: self.stopping,
            }
            for state, workers in there.items():
                assert (model in workers) == (view.state is state), (model, view.state)
        leased = [core for view in views.values() for core in view.cores]
        at_work = sum(bool(view.cores) for view in views.values())
        if at_work <= self.policy.cores:
            assert len(leased) == len(set(leased)), "a core leased twice"
        assert set(leased) <= set(range(self.policy.cores))
