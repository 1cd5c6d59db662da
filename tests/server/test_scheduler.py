# SPDX-License-Identifier: Apache-2.0
"""The pool's policy, event by event and under random histories. No clock, no processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
from capibara_axion.server.scheduler import ModelState, Policy, Scheduler


def scheduler(models: str = "ab", **limits: Any) -> Scheduler:
    return Scheduler(models, replace(Policy(max_loaded=2), **limits))


def ready(s: Scheduler, model: str, now: float, request: int) -> None:
    """Load a model with one request, which ends at once."""
    start = s.handle(RequestArrived(request, model), now)[0]
    assert isinstance(start, StartWorker)
    s.handle(LoadSucceeded(model, start.generation), now)
    s.handle(RequestEnded(request), now)


def refusals(effects: Sequence[Effect]) -> list[Refuse]:
    return [effect for effect in effects if isinstance(effect, Refuse)]


def test_first_request_loads_and_later_ones_join_that_load() -> None:
    s = scheduler()
    assert s.handle(RequestArrived(1, "a"), 0) == [StartWorker("a", 1, 0)]
    assert s.handle(RequestArrived(2, "a"), 1) == []
    assert s.handle(LoadSucceeded("a", 1), 2) == [Admit(1, "a"), Admit(2, "a")]
    assert s.handle(RequestArrived(3, "a"), 3) == [Admit(3, "a")]


def test_a_load_goes_on_when_its_client_leaves() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    assert s.handle(RequestEnded(1), 1) == []
    assert s.handle(LoadSucceeded("a", 1), 2) == []
    assert s.view()["a"].state is ModelState.READY


def test_engines_go_to_the_emptiest_core_slot() -> None:
    s = scheduler("abc", max_loaded=3, core_slots=2)
    starts = [s.handle(RequestArrived(i, name), 0)[0] for i, name in enumerate("abc")]
    assert starts == [StartWorker("a", 1, 0), StartWorker("b", 1, 1), StartWorker("c", 1, 0)]


def test_the_least_recently_used_idle_model_makes_room() -> None:
    s = scheduler("abc")
    ready(s, "a", 0, 1)
    ready(s, "b", 1, 2)
    s.handle(RequestArrived(3, "a"), 2)
    s.handle(RequestEnded(3), 3)
    assert s.handle(RequestArrived(4, "c"), 4) == [StopWorker("b", 1, "evicted")]
    assert s.handle(RequestArrived(5, "c"), 5) == []  # room is on its way: no second victim
    assert s.handle(WorkerExited("b", 1), 6) == [StartWorker("c", 1, 0)]


def test_busy_and_loading_models_are_never_evicted() -> None:
    s = scheduler("abc")
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 2)
    assert s.handle(RequestArrived(3, "c"), 3) == []
    assert s.handle(RequestEnded(1), 4) == [StopWorker("a", 1, "evicted")]


def test_an_idle_model_is_unloaded_after_its_last_completion() -> None:
    s = scheduler(idle_unload_s=300)
    ready(s, "a", 0, 1)
    s.handle(RequestArrived(2, "a"), 100)
    assert s.next_deadline() is None
    s.handle(RequestEnded(2), 150)
    assert s.next_deadline() == 450
    assert s.handle(Tick(), 449.9) == []
    assert s.handle(Tick(), 450) == [StopWorker("a", 1, "idle")]


def test_a_request_during_unloading_waits_and_reloads() -> None:
    s = scheduler(idle_unload_s=10)
    ready(s, "a", 0, 1)
    s.handle(Tick(), 10)
    assert s.handle(RequestArrived(2, "a"), 11) == []
    assert s.handle(WorkerExited("a", 1), 12) == [StartWorker("a", 2, 0)]


def test_a_failed_load_refuses_until_the_pause_is_over() -> None:
    s = scheduler(retry_after_s=10)
    s.handle(RequestArrived(1, "a"), 0)
    assert s.handle(LoadFailed("a", 1, "no weights"), 1) == [
        Refuse(1, "no weights", "model_load_failed", 10)
    ]
    assert s.handle(RequestArrived(2, "a"), 4) == [Refuse(2, "no weights", "model_load_failed", 7)]
    assert s.handle(RequestArrived(3, "b"), 4) == [StartWorker("b", 1, 0)]  # others go on
    assert s.handle(RequestArrived(4, "a"), 11) == [StartWorker("a", 2, 0)]


def test_a_load_that_takes_too_long_is_stopped_and_has_failed() -> None:
    s = scheduler(load_timeout_s=60)
    s.handle(RequestArrived(1, "a"), 0)
    assert s.next_deadline() == 60
    refuse, stop = s.handle(Tick(), 60)
    assert isinstance(refuse, Refuse)
    assert stop == StopWorker("a", 1, "load timeout", force=True)
    s.handle(LoadFailed("a", 1, "killed"), 61)
    assert s.view()["a"].state is ModelState.FAILED
    assert "60 s" in s.view()["a"].failure


def test_a_dead_worker_is_replaced_by_the_next_request() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    assert s.handle(WorkerExited("a", 1), 2) == []
    assert s.handle(RequestArrived(2, "a"), 2) == [StartWorker("a", 2, 0)]
    s.handle(RequestEnded(1), 3)
    assert s.handle(LoadSucceeded("a", 2), 4) == [Admit(2, "a")]


def test_reports_about_an_earlier_worker_are_ignored() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(WorkerExited("a", 1), 2)
    s.handle(RequestArrived(2, "a"), 3)
    for stale in (LoadSucceeded("a", 1), LoadFailed("a", 1, "old"), WorkerExited("a", 1)):
        assert s.handle(stale, 4) == []
    assert s.view()["a"].state is ModelState.LOADING


def test_the_number_of_requests_is_bounded() -> None:
    s = scheduler(max_requests=2)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(RequestArrived(2, "b"), 0)
    (refused,) = refusals(s.handle(RequestArrived(3, "a"), 0))
    assert refused.code == "too_many_requests"
    s.handle(RequestEnded(2), 1)
    assert not refusals(s.handle(RequestArrived(4, "a"), 1))


def test_waiting_has_a_deadline() -> None:
    s = scheduler("abc", queue_timeout_s=30, max_loaded=1)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 5)
    assert s.next_deadline() == 35
    (refused,) = refusals(s.handle(Tick(), 35))
    assert (refused.request, refused.code) == (2, "queue_timeout")


def test_shutdown_refuses_what_waits_and_lets_finish_what_runs() -> None:
    s = scheduler("abc", max_loaded=3)
    ready(s, "a", 0, 1)
    s.handle(RequestArrived(2, "b"), 1)
    s.handle(LoadSucceeded("b", 1), 2)
    s.handle(RequestArrived(3, "c"), 3)
    effects = s.handle(ShutdownRequested(), 4)
    assert [r.request for r in refusals(effects)] == [3]
    assert StopWorker("a", 1, "shutdown") in effects
    assert StopWorker("c", 1, "shutdown", force=True) in effects
    assert refusals(s.handle(RequestArrived(4, "a"), 5))
    assert s.handle(RequestEnded(2), 6) == [StopWorker("b", 1, "shutdown")]


def test_an_unknown_model_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        scheduler().handle(RequestArrived(1, "z"), 0)


class Histories(RuleBasedStateMachine):
    """Any order of arrivals, departures, loads, failures, crashes and pauses.

    The machine plays the owner: it knows which workers exist and which answer each request got.
    """

    models = "abc"
    limits = Policy(
        max_loaded=2,
        max_requests=6,
        idle_unload_s=20,
        load_timeout_s=30,
        queue_timeout_s=50,
        retry_after_s=5,
        core_slots=2,
    )

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.models, self.limits)
        self.now = 0.0
        self.next_request = 0
        self.loading: dict[str, int] = {}
        self.serving: dict[str, int] = {}
        self.stopping: dict[str, int] = {}
        self.waiting: dict[int, str] = {}
        self.running: dict[int, tuple[str, int]] = {}
        self.stopped = False

    def send(self, event: Event) -> None:
        for effect in self.scheduler.handle(event, self.now):
            match effect:
                case Admit(request, model):
                    assert self.waiting.pop(request) == model
                    self.running[request] = (model, self.serving[model])
                case Refuse(request, _, _, retry_after_s):
                    del self.waiting[request]
                    assert retry_after_s >= 1
                case StartWorker(model, generation, core_slot):
                    assert not self.stopped
                    assert model not in {**self.loading, **self.serving, **self.stopping}
                    assert 0 <= core_slot < self.limits.core_slots
                    self.loading[model] = generation
                case StopWorker(model, generation, _, force):
                    if force:
                        assert self.loading.pop(model) == generation
                    else:
                        assert self.serving.pop(model) == generation
                        assert (model, generation) not in self.running.values()
                    self.stopping[model] = generation

    @rule(model=st.sampled_from(models))
    def arrive(self, model: str) -> None:
        self.next_request += 1
        self.waiting[self.next_request] = model
        self.send(RequestArrived(self.next_request, model))

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted({**self.waiting, **self.running})))
        self.waiting.pop(request, None)
        self.running.pop(request, None)
        self.send(RequestEnded(request))

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), succeeds=st.booleans())
    def load_ends(self, data: st.DataObject, succeeds: bool) -> None:
        model = data.draw(st.sampled_from(sorted(self.loading)))
        generation = self.loading.pop(model)
        if succeeds:
            self.serving[model] = generation
            self.send(LoadSucceeded(model, generation))
        else:
            self.send(LoadFailed(model, generation, "broken"))

    @precondition(lambda self: self.serving)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.serving)))
        self.send(WorkerExited(model, self.serving.pop(model)))

    @rule(
        model=st.sampled_from(models),
        report=st.sampled_from(
            [LoadSucceeded, WorkerExited, lambda model, old: LoadFailed(model, old, "late")]
        ),
    )
    def report_late(self, model: str, report: Callable[[str, int], Event]) -> None:
        current = {**self.loading, **self.serving, **self.stopping}.get(model)
        if current is not None:
            self.send(report(model, current - 1))

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def stop_ends(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.stopping)))
        self.send(WorkerExited(model, self.stopping.pop(model)))

    @rule()
    def wait_for_deadline(self) -> None:
        deadline = self.scheduler.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.send(Tick())
            following = self.scheduler.next_deadline()
            assert following is None or following > self.now  # a tick must not repeat itself

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.send(Tick())

    @rule()
    def shut_down(self) -> None:
        if self.next_request > 12:
            self.stopped = True
            self.send(ShutdownRequested())

    @invariant()
    def limits_hold(self) -> None:
        assert len(self.loading) + len(self.serving) + len(self.stopping) <= self.limits.max_loaded
        assert len(self.waiting) + len(self.running) <= self.limits.max_requests

    @invariant()
    def the_view_is_the_truth(self) -> None:
        running = [model for model, _ in self.running.values()]
        for model, view in self.scheduler.view().items():
            assert view.running == running.count(model)
            assert view.waiting == list(self.waiting.values()).count(model)
            expected = {
                ModelState.LOADING: model in self.loading,
                ModelState.READY: model in self.serving,
                ModelState.DRAINING: model in self.stopping,
            }
            assert [s for s, holds in expected.items() if holds] == [
                s for s in expected if s is view.state
            ]

    @invariant()
    def nobody_waits_for_a_ready_model(self) -> None:
        assert not set(self.waiting.values()) & set(self.serving)

    def teardown(self) -> None:
        """Whatever happened, requests get their answer if workers do their part."""
        for _ in range(100):
            if not (self.waiting or self.running):
                return
            for model in list(self.stopping):
                self.send(WorkerExited(model, self.stopping.pop(model)))
            for model in list(self.loading):
                generation = self.loading.pop(model)
                self.serving[model] = generation
                self.send(LoadSucceeded(model, generation))
            for request in list(self.running):
                del self.running[request]
                self.send(RequestEnded(request))
            self.wait_for_deadline()
        raise AssertionError(f"never answered: {self.waiting}")


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestHistories = Histories.TestCase
