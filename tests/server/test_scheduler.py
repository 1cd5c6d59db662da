# SPDX-License-Identifier: Apache-2.0
"""The pool's policy, event by event. No clock, no processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from capibara_axion.server.events import (
    Admit,
    BudgetKnown,
    CoresSet,
    Effect,
    LoadFailed,
    LoadSucceeded,
    MemoryKnown,
    Reconfigured,
    Refuse,
    RequestArrived,
    RequestEnded,
    SetCores,
    ShutdownRequested,
    StartWorker,
    StopWorker,
    Tick,
    UnloadRequested,
    WorkerExited,
    WorkerHung,
)
from capibara_axion.server.models import ModelState
from capibara_axion.server.policy import Evictable, ModelSettings, Policy, choose_victims
from capibara_axion.server.scheduler import Scheduler


def scheduler(
    models: str = "ab", budget: int | None = None, settings: Any = None, **limits: Any
) -> Scheduler:
    given = settings or {}
    policy = replace(Policy(max_loaded=2, cores=4), **limits)
    return Scheduler({name: given.get(name, ModelSettings()) for name in models}, policy, budget)


def start(model: str, generation: int, cause: str = "request", cores: int = 4) -> StartWorker:
    return StartWorker(model, generation, tuple(range(cores)), cause)


def ready(s: Scheduler, model: str, now: float, request: int) -> None:
    """Load a model with one request, which ends at once."""
    starts = [e for e in s.handle(RequestArrived(request, model), now) if type(e) is StartWorker]
    s.handle(LoadSucceeded(model, starts[0].generation), now)
    for effect in s.handle(Tick(), now + 0.25):  # whatever cores it waited for
        assert not isinstance(effect, Refuse)
    s.handle(RequestEnded(request, served=True), now)


def of_type(kind: type[Any], effects: Sequence[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_first_request_loads_and_later_ones_join_that_load() -> None:
    s = scheduler()
    assert s.handle(RequestArrived(1, "a"), 0) == [start("a", 1)]
    assert s.handle(RequestArrived(2, "a"), 1) == []
    assert s.handle(LoadSucceeded("a", 1), 2) == [Admit(1, "a"), Admit(2, "a")]
    assert s.handle(RequestArrived(3, "a"), 3) == [Admit(3, "a")]


def test_a_load_goes_on_when_its_client_leaves() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    assert s.handle(RequestEnded(1), 1) == []
    assert s.handle(LoadSucceeded("a", 1), 2) == []
    assert s.view()["a"].state is ModelState.READY


def test_a_load_that_nobody_waits_for_gives_way_to_one_that_somebody_does() -> None:
    s = scheduler(max_loaded=1)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(RequestEnded(1), 1)
    assert s.handle(RequestArrived(2, "b"), 2) == [StopWorker("a", 1, "cancelled", force=True)]
    assert of_type(StartWorker, s.handle(LoadFailed("a", 1, "killed"), 3)) == [start("b", 1)]


def test_two_models_load_side_by_side_but_no_more_than_there_are_cores() -> None:
    s = scheduler("abc", max_loaded=3, cores=2)
    assert s.handle(RequestArrived(1, "a"), 0) == [start("a", 1, cores=2)]
    (second,) = of_type(StartWorker, s.handle(RequestArrived(2, "b"), 0))
    assert second.cores == (1,)
    assert of_type(StartWorker, s.handle(RequestArrived(3, "c"), 0)) == []
    assert of_type(StartWorker, s.handle(LoadSucceeded("a", 1), 1))


def test_the_longest_idle_model_makes_room() -> None:
    s = scheduler("abc")
    ready(s, "a", 0, 1)
    ready(s, "b", 1, 2)
    s.handle(RequestArrived(3, "a"), 2)
    s.handle(RequestEnded(3), 3)
    assert of_type(StopWorker, s.handle(RequestArrived(4, "c"), 4)) == [
        StopWorker("b", 1, "evicted")
    ]
    assert s.handle(RequestArrived(5, "c"), 5) == []  # room is on its way: no second victim
    assert s.handle(WorkerExited("b", 1), 6) == [start("c", 1)]


def test_busy_and_loading_models_are_never_evicted() -> None:
    s = scheduler("abc", cores=8)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 2)
    assert not of_type(StopWorker, s.handle(RequestArrived(3, "c"), 3))
    assert s.handle(RequestEnded(1), 4) == [StopWorker("a", 1, "evicted")]


def test_a_request_that_waits_too_long_makes_a_busy_model_take_no_more() -> None:
    s = scheduler(max_loaded=1, max_wait_s=30)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    assert s.handle(RequestArrived(2, "b"), 2) == []
    assert s.handle(RequestArrived(3, "a"), 3) == [Admit(3, "a")]
    assert s.next_deadline(3) == 32
    assert s.handle(Tick(), 32) == []
    assert s.view()["a"].retiring == "aged out"
    assert s.handle(RequestArrived(4, "a"), 33) == []  # waits, behind the one for b
    s.handle(RequestEnded(1), 34)
    assert s.handle(RequestEnded(3), 35) == [StopWorker("a", 1, "aged out")]
    assert s.handle(WorkerExited("a", 1), 36) == [start("b", 1)]


def test_a_model_takes_requests_again_when_nobody_waits_for_its_room() -> None:
    s = scheduler(max_loaded=1, max_wait_s=30)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 2)
    s.handle(Tick(), 32)
    s.handle(RequestArrived(3, "a"), 33)
    assert s.handle(RequestEnded(2), 34) == [Admit(3, "a")]


def test_an_idle_model_is_unloaded_after_its_last_completion() -> None:
    s = scheduler(idle_unload_s=300)
    ready(s, "a", 0, 1)
    s.handle(RequestArrived(2, "a"), 100)
    s.handle(RequestEnded(2), 150)
    assert s.handle(Tick(), 449.9) == []
    assert s.next_deadline(449.9) == 450
    assert s.handle(Tick(), 450) == [StopWorker("a", 1, "idle")]


@pytest.mark.parametrize(
    ("of_request", "of_model", "expected"),
    [(None, None, 300), (None, 60, 60), (7, 60, 7), (0, None, 0), (-1, 60, None), (None, -1, None)],
)
def test_keep_alive_of_request_before_that_of_model(
    of_request: float | None, of_model: float | None, expected: float | None
) -> None:
    s = scheduler(settings={"a": ModelSettings(keep_alive_s=of_model)}, cores_linger_s=0)
    s.handle(RequestArrived(1, "a", keep_alive_s=of_request), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    effects = s.handle(RequestEnded(1), 2)
    if expected == 0:
        assert effects == [StopWorker("a", 1, "idle")]
    else:
        assert s.next_deadline(2) == (None if expected is None else 2 + expected)


def test_a_request_during_unloading_waits_and_reloads() -> None:
    s = scheduler(idle_unload_s=10)
    ready(s, "a", 0, 1)
    s.handle(Tick(), 10)
    assert s.handle(RequestArrived(2, "a"), 11) == []
    assert s.handle(WorkerExited("a", 1), 12) == [start("a", 2)]


def test_a_worker_that_does_not_end_is_killed() -> None:
    s = scheduler(idle_unload_s=10, stop_grace_s=5)
    ready(s, "a", 0, 1)
    s.handle(Tick(), 10)
    assert s.next_deadline(10) == 15
    assert s.handle(Tick(), 15) == [StopWorker("a", 1, "unresponsive", force=True)]
    assert s.handle(Tick(), 20) == [StopWorker("a", 1, "unresponsive", force=True)]


def test_a_failed_load_refuses_until_the_pause_is_over_and_pauses_grow() -> None:
    s = scheduler(backoff_s=10, backoff_max_s=15)
    s.handle(RequestArrived(1, "a"), 0)
    assert s.handle(LoadFailed("a", 1, "no weights"), 1) == [
        Refuse(1, "no weights", "model_load_failed", 10)
    ]
    assert s.handle(RequestArrived(2, "a"), 4) == [Refuse(2, "no weights", "model_load_failed", 7)]
    assert of_type(StartWorker, s.handle(RequestArrived(3, "b"), 4))  # others go on
    assert of_type(StartWorker, s.handle(RequestArrived(4, "a"), 11))
    s.handle(LoadFailed("a", 2, "no weights"), 12)
    assert s.handle(RequestArrived(5, "a"), 12)[0].retry_after_s == 15  # type: ignore[union-attr]
    assert of_type(StartWorker, s.handle(RequestArrived(6, "a"), 27))
    s.handle(LoadSucceeded("a", 3), 28)
    s.handle(RequestEnded(6, served=True), 29)
    assert s.view()["a"].failures == 0


def test_a_dead_worker_is_replaced_at_once_the_first_time_only() -> None:
    s = scheduler(backoff_s=10)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    assert s.handle(WorkerExited("a", 1), 2) == []
    s.handle(RequestEnded(1), 2)
    assert s.handle(RequestArrived(2, "a", replay=True), 2) == [start("a", 2)]
    s.handle(LoadSucceeded("a", 2), 3)
    s.handle(WorkerExited("a", 2), 4)
    s.handle(RequestEnded(2), 4)
    assert s.view()["a"].state is ModelState.FAILED
    assert of_type(Refuse, s.handle(RequestArrived(3, "a"), 5))
    assert s.handle(RequestArrived(4, "a", replay=True), 5) == []  # this one waits
    assert s.handle(Tick(), 14) == [start("a", 3)]


def test_a_load_that_dies_without_a_word_is_tried_again_once() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    assert s.handle(LoadFailed("a", 1, "code -9", crashed=True), 1) == [start("a", 2)]
    (refused,) = of_type(Refuse, s.handle(LoadFailed("a", 2, "code -9", crashed=True), 2))
    assert (refused.request, refused.reason) == (1, "code -9")


def test_a_hung_worker_is_killed_and_replaced() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    assert s.handle(WorkerHung("a", 1), 30) == [StopWorker("a", 1, "hung", force=True)]
    s.handle(WorkerExited("a", 1), 31)
    s.handle(RequestEnded(1), 31)
    assert s.handle(RequestArrived(2, "a", replay=True), 31) == [start("a", 2)]


def test_a_load_that_takes_too_long_is_stopped_and_has_failed() -> None:
    s = scheduler(load_timeout_s=60)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(Tick(), 59)
    assert s.next_deadline(59) == 60
    refuse, stop = s.handle(Tick(), 60)
    assert isinstance(refuse, Refuse)
    assert stop == StopWorker("a", 1, "load timeout", force=True)
    s.handle(LoadFailed("a", 1, "killed"), 61)
    assert s.view()["a"].state is ModelState.FAILED
    assert "60 s" in s.view()["a"].failure


def test_reports_about_an_earlier_worker_are_ignored() -> None:
    s = scheduler()
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(WorkerExited("a", 1), 2)
    s.handle(RequestArrived(2, "a"), 3)
    for stale in (
        LoadSucceeded("a", 1),
        LoadFailed("a", 1, "old"),
        WorkerExited("a", 1),
        WorkerHung("a", 1),
        CoresSet("a", 1),
    ):
        assert s.handle(stale, 4) == []
    assert s.view()["a"].state is ModelState.LOADING


def test_the_number_of_requests_is_bounded_in_all_and_for_a_model() -> None:
    s = scheduler(max_requests=3, settings={"a": ModelSettings(max_requests=2)})
    for request, model in ((1, "a"), (2, "a")):
        assert not of_type(Refuse, s.handle(RequestArrived(request, model), 0))
    (refused,) = of_type(Refuse, s.handle(RequestArrived(3, "a"), 0))
    assert (refused.code, "'a'" in refused.reason) == ("too_many_requests", True)
    assert not of_type(Refuse, s.handle(RequestArrived(4, "b"), 0))
    (refused,) = of_type(Refuse, s.handle(RequestArrived(5, "b"), 0))
    assert "server" in refused.reason
    s.handle(RequestEnded(2), 1)
    assert not of_type(Refuse, s.handle(RequestArrived(6, "a"), 1))


def test_waiting_ends_with_the_servers_patience_or_the_clients() -> None:
    s = scheduler(queue_timeout_s=30, max_loaded=1, max_wait_s=1000)
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 5)
    s.handle(RequestArrived(3, "b", deadline=20), 5)
    assert s.next_deadline(5) == 20
    (refused,) = of_type(Refuse, s.handle(Tick(), 20))
    assert (refused.request, refused.code) == (3, "deadline_exceeded")
    assert s.next_deadline(20) == 35
    (refused,) = of_type(Refuse, s.handle(Tick(), 35))
    assert (refused.request, refused.code) == (2, "queue_timeout")


# Memory


def sized(**sizes: int) -> dict[str, ModelSettings]:
    return {name: ModelSettings(size=size) for name, size in sizes.items()}


def test_models_are_evicted_until_there_is_memory() -> None:
    s = scheduler("abc", budget=10, max_loaded=3, settings=sized(a=4, b=5, c=8))
    ready(s, "a", 0, 1)
    ready(s, "b", 1, 2)
    stops = of_type(StopWorker, s.handle(RequestArrived(3, "c"), 2))
    assert {stop.model for stop in stops} == {"a", "b"}
    assert s.handle(WorkerExited("a", 1), 3) == []
    assert of_type(StartWorker, s.handle(WorkerExited("b", 1), 4))


def test_a_model_larger_than_the_budget_is_refused_with_both_figures() -> None:
    gib = 2**30
    s = scheduler(budget=2 * gib, settings=sized(a=3 * gib))
    (refused,) = of_type(Refuse, s.handle(RequestArrived(1, "a"), 0))
    assert refused.code == "insufficient_memory"
    assert "3.00 GiB" in refused.reason
    assert "2.00 GiB" in refused.reason
    assert of_type(StartWorker, s.handle(RequestArrived(2, "b"), 0))


def test_a_younger_small_model_may_pass_a_large_one_but_not_for_ever() -> None:
    s = scheduler("abc", budget=10, max_loaded=3, max_wait_s=30, settings=sized(a=6, b=8, c=2))
    s.handle(RequestArrived(1, "a"), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(2, "b"), 2)
    assert of_type(StartWorker, s.handle(RequestArrived(3, "c"), 3))
    s.handle(LoadSucceeded("c", 1), 4)
    s.handle(CoresSet("a", 1), 4)
    s.handle(Tick(), 5)
    s.handle(RequestEnded(3), 6)
    s.handle(Tick(), 40)
    assert {view.retiring for view in s.view().values()} >= {"aged out"}


def test_better_estimates_count_and_too_much_memory_evicts() -> None:
    s = scheduler("abc", budget=10, max_loaded=3, settings=sized(a=4, b=4, c=4))
    ready(s, "a", 0, 1)
    ready(s, "b", 1, 2)
    assert s.handle(MemoryKnown("b", 7), 2) == [StopWorker("b", 1, "memory")]
    s.handle(WorkerExited("b", 1), 3)
    assert s.handle(BudgetKnown(3), 4) == [StopWorker("a", 1, "memory")]


def test_victims_are_the_long_idle_the_large_and_the_unimportant() -> None:
    def choose(slots: int, size: int, *candidates: Evictable) -> list[str] | None:
        return choose_victims(candidates, slots=slots, size=size)

    gib = 2**30
    idle = Evictable("idle", gib, 100, 1, False)
    fresh = Evictable("fresh", gib, 1, 1, False)
    large = Evictable("large", 8 * gib, 100, 1, False)
    dear = Evictable("dear", gib, 100, 9, False)
    warm = Evictable("warm", gib, 1000, 1, True)
    assert choose(1, 0, idle, fresh) == ["idle"]
    assert choose(1, 0, idle, large) == ["large"]
    assert choose(1, 0, idle, dear) == ["idle"]
    assert choose(1, 0, fresh, warm) == ["fresh"]
    assert choose(0, 2 * gib, idle, fresh) == ["idle", "fresh"]
    assert choose(0, 3 * gib, idle, fresh) is None
    # `idle` is first in line, but once `dear2` is needed it alone would do.
    dear2 = Evictable("dear2", 5 * gib, 10, 9, False)
    assert choose(0, 5 * gib, idle, dear2) == ["dear2"]


# Warm and pinned models


def test_warm_models_are_loaded_unasked_and_stay() -> None:
    settings = {name: ModelSettings(priority=i) for i, name in enumerate("abc")}
    s = scheduler("abc", settings=settings, warm_models=2, max_loaded=3, idle_unload_s=10)
    assert {e.model: e.cause for e in of_type(StartWorker, s.handle(Tick(), 0))} == {
        "c": "warm",
        "b": "warm",
    }
    s.handle(LoadSucceeded("c", 1), 1)
    s.handle(LoadSucceeded("b", 1), 1)
    assert s.handle(Tick(), 1000) == []


def test_warm_models_give_way_and_come_back_when_there_is_room_again() -> None:
    s = scheduler(warm_models=1, max_loaded=1, warm_refill_s=10, idle_unload_s=5)
    s.handle(Tick(), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    assert s.handle(RequestArrived(1, "b"), 2) == [StopWorker("a", 1, "evicted")]
    s.handle(WorkerExited("a", 1), 3)
    s.handle(LoadSucceeded("b", 1), 4)
    s.handle(RequestEnded(1), 5)
    assert s.handle(Tick(), 10) == [StopWorker("b", 1, "idle")]
    assert s.handle(WorkerExited("b", 1), 11) == []  # the pause since the eviction
    assert s.next_deadline(11) == 12
    assert s.handle(Tick(), 12) == [start("a", 2, "warm")]


def test_pinned_models_push_others_out_and_are_never_pushed() -> None:
    s = scheduler(max_loaded=1, settings={"b": ModelSettings(pinned=True)})
    assert s.handle(Tick(), 0) == [start("b", 1, "pinned")]
    s.handle(LoadSucceeded("b", 1), 1)
    assert s.handle(RequestArrived(1, "a"), 2) == []
    assert s.handle(Tick(), 100) == []  # not even when a request has waited long


def test_an_operator_unloads_and_the_model_stays_away_until_asked_for() -> None:
    s = scheduler(warm_models=1, warm_refill_s=0)
    s.handle(Tick(), 0)
    s.handle(LoadSucceeded("a", 1), 1)
    s.handle(RequestArrived(1, "a"), 2)
    assert s.handle(UnloadRequested("a"), 3) == []  # it is busy
    assert s.handle(RequestEnded(1), 4) == [StopWorker("a", 1, "requested")]
    s.handle(WorkerExited("a", 1), 5)
    assert s.handle(Tick(), 1000) == []
    assert of_type(StartWorker, s.handle(RequestArrived(2, "a"), 1001))


# Cores


def test_models_at_work_share_the_cores_and_an_idle_one_holds_none() -> None:
    s = scheduler(cores=4, cores_linger_s=1, cores_wait_s=0.5)
    ready(s, "a", 0, 1)
    ready(s, "b", 5, 2)
    s.handle(Tick(), 10)
    assert s.view()["a"].cores == ()
    assert s.handle(RequestArrived(3, "a"), 11) == [Admit(3, "a")]
    assert s.view()["a"].cores == (0, 1, 2, 3)
    # b waits until a has given half of them back.
    effects = s.handle(RequestArrived(4, "b"), 12)
    assert effects == [SetCores("a", 1, (0, 1)), SetCores("b", 1, (2, 3))]
    assert s.handle(CoresSet("b", 1), 12.1) == []
    assert s.handle(CoresSet("a", 1), 12.2) == [Admit(4, "b")]
    s.handle(RequestEnded(3), 13)
    assert s.handle(Tick(), 14.1) == [SetCores("b", 1, (0, 1, 2, 3))]


def test_cores_that_are_not_given_back_are_not_waited_for_for_long() -> None:
    s = scheduler(cores=4, cores_linger_s=1, cores_wait_s=0.5)
    ready(s, "a", 0, 1)
    ready(s, "b", 5, 2)
    s.handle(RequestArrived(3, "a"), 11)
    s.handle(RequestArrived(4, "b"), 12)
    s.handle(CoresSet("b", 1), 12.1)
    assert s.next_deadline(12.1) == 12.5
    assert s.handle(Tick(), 12.5) == [Admit(4, "b")]


# Configuration and shutdown


def test_a_new_configuration_drains_what_changed_and_leaves_the_rest() -> None:
    s = scheduler("abc", max_loaded=3)
    for request, name in enumerate("abc", start=1):
        ready(s, name, request, request)
    s.handle(RequestArrived(9, "b"), 10)
    new = {name: ModelSettings(priority=1) for name in "acd"}
    effects = s.handle(
        Reconfigured(new, reload=frozenset("c"), policy=Policy(max_loaded=3, cores=4)), 11
    )
    assert of_type(StopWorker, effects) == [StopWorker("c", 1, "reconfigured")]
    assert s.view()["a"].state is ModelState.READY
    assert of_type(Refuse, s.handle(RequestArrived(10, "b"), 12))
    assert of_type(StopWorker, s.handle(RequestEnded(9), 13)) == [StopWorker("b", 1, "removed")]
    s.handle(WorkerExited("b", 1), 14)
    assert set(s.view()) == set("acd")
    s.handle(WorkerExited("c", 1), 14)
    assert of_type(StartWorker, s.handle(RequestArrived(11, "d"), 15))


def test_shutdown_refuses_what_waits_and_lets_finish_what_runs() -> None:
    s = scheduler("abc", max_loaded=3)
    ready(s, "a", 0, 1)
    s.handle(RequestArrived(2, "b"), 1)
    s.handle(LoadSucceeded("b", 1), 2)
    s.handle(Tick(), 3)
    s.handle(RequestArrived(3, "c"), 3)
    effects = s.handle(ShutdownRequested(), 4)
    assert [r.request for r in of_type(Refuse, effects)] == [3]
    assert StopWorker("a", 1, "shutdown") in effects
    assert StopWorker("c", 1, "shutdown", force=True) in effects
    assert of_type(Refuse, s.handle(RequestArrived(4, "a"), 5))
    assert of_type(StopWorker, s.handle(RequestEnded(2), 6)) == [StopWorker("b", 1, "shutdown")]


def test_an_unknown_model_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        scheduler().handle(RequestArrived(1, "z"), 0)
