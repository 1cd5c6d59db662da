# SPDX-License-Identifier: Apache-2.0
"""The scheduler under every history of a small world, and under random ones of a larger one."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from scheduler_owner import Owner

from capibara_axion.server import events
from capibara_axion.server.models import ModelState
from capibara_axion.server.policy import ModelSettings, Policy

# Times are multiples of ten, so that there are few different situations.
_POLICY = Policy(
    max_loaded=2,
    max_requests=6,
    cores=2,
    warm_refill_s=10,
    idle_unload_s=20,
    load_timeout_s=20,
    queue_timeout_s=30,
    max_wait_s=10,
    backoff_s=10,
    backoff_max_s=20,
    stop_grace_s=10,
    cores_wait_s=10,
    cores_linger_s=0,
)
_OLD = 40.0  # older than anything matters

Action = tuple[str, Callable[[Owner], Any]]


def kind_actions(owner: Owner) -> Iterator[Action]:
    """What workers, clients and time do when all goes well."""
    for request in owner.running:
        yield f"serve {owner.running[request]}", lambda o, r=request: o.serve(r)
    for model in owner.loading:
        yield f"loaded {model}", lambda o, m=model: o.loaded(m)
    for model in owner.stopping:
        yield f"exits {model}", lambda o, m=model: o.exits(m)
    for model in owner.asked:
        yield f"cores set {model}", lambda o, m=model: o.cores_set(m)
    if owner.scheduler.next_deadline(owner.now) is not None:
        yield "time", lambda o: o.tick_at_deadline()


def unkind_actions(owner: Owner, budget: dict[str, int]) -> Iterator[Action]:
    if budget["arrive"]:
        for model in owner.settings:
            yield f"arrive {model}", lambda o, m=model: o.arrive(m)
    if budget["cancel"]:
        for request in {**owner.waiting, **owner.running}:
            yield "cancel", lambda o, r=request: o.leave(r)
    if budget["crash"]:
        for model in owner.serving:
            yield "crash", lambda o, m=model: o.crash(m)
        for model in owner.loading:
            yield "crash", lambda o, m=model: o.load_fails(m, crashed=True)
            yield "crash", lambda o, m=model: o.load_fails(m)
    if budget["hang"]:
        for model in owner.serving:
            yield "hang", lambda o, m=model: o.hang(m)
    if budget["stop"] and not owner.shut_down:
        yield "stop", lambda o: o.stop()


def canonical(owner: Owner, budget: dict[str, int]) -> Hashable:
    """The same for two situations that only differ in numbers of requests, starts and seconds."""
    now, s = owner.now, owner.scheduler

    def ago(at: float) -> float:
        return min(_OLD, now - at)

    def cores(name: str) -> Hashable:
        lease, worker = s._leases._leases.get(name), s._leases._workers.get(name)
        return (
            (sorted(lease.target), ago(lease.since)) if lease else None,
            (sorted(worker.applied), sorted(worker.asked or ())) if worker else None,
        )

    models = [
        repr(
            (
                m.state.value,
                m.retiring,
                m.hung,
                m.crashed,
                min(m.failures, 3),
                m.load_cause,
                bool(m.failure),
                [(ago(arrived), r in owner.replays) for r, (arrived, _) in m.waiting.items()],
                sorted(r in owner.replays for r in m.running),
                ago(m.since) if m.has_worker and m.state is not ModelState.READY else 0.0,
                ago(m.last_used) if m.idle else 0.0,
                max(0.0, m.retry_at - now),
                cores(m.name),
            )
        )
        for m in s._models.values()
    ]
    if not owner.policy.warm_models:
        models.sort()  # which of several equal models it is makes no difference
    eviction = ago(s._placement._last_eviction)
    return tuple(models), eviction, owner.shut_down, tuple(budget.values())


class Exploration:
    """All situations that can be reached, breadth first, each visited once."""

    def __init__(self, owner: Owner, budget: dict[str, int], limit: int) -> None:
        self.ids: dict[Hashable, int] = {canonical(owner, budget): 0}
        self.kind_edges: list[list[int]] = [[]]  # state -> states from which it follows kindly
        self.goals: list[int] = []
        self.transitions = 0
        queue = deque([(0, pickle.dumps((owner, budget)))])
        while queue and len(self.ids) < limit:
            state, frozen = queue.popleft()
            here, left = pickle.loads(frozen)
            if not (here.waiting or here.running):
                self.goals.append(state)
            kind = [name for name, _ in kind_actions(here)]
            names = kind + [name for name, _ in unkind_actions(here, left)]
            for index, name in enumerate(names):
                there, left = pickle.loads(frozen)
                actions = [*kind_actions(there), *unkind_actions(there, left)]
                word = name.split()[0]
                if word in left:
                    left[word] -= 1
                actions[index][1](there)
                self.transitions += 1
                key = canonical(there, left)
                found = self.ids.get(key)
                if found is None:
                    found = self.ids[key] = len(self.ids)
                    self.kind_edges.append([])
                    queue.append((found, pickle.dumps((there, left))))
                if index < len(kind):
                    self.kind_edges[found].append(state)
        self.complete = not queue

    def stuck(self) -> int:
        """How many situations cannot come to an end with all requests answered."""
        reached, frontier = set(self.goals), list(self.goals)
        while frontier:
            for before in self.kind_edges[frontier.pop()]:
                if before not in reached:
                    reached.add(before)
                    frontier.append(before)
        return len(self.ids) - len(reached)


def _world(models: str, **limits: Any) -> Owner:
    sizes = {name: ModelSettings(size=4) for name in models}
    return Owner.of(sizes, replace(_POLICY, **limits), budget=9)


# Arrivals, cancels, crashes, hangs, stops.
SMALL = [
    pytest.param("ab", {"max_loaded": 1}, (2, 1, 1, 1, 1), id="2 models, room for 1"),
    pytest.param("ab", {"warm_models": 1}, (2, 0, 0, 0, 1), id="2 models, 1 warm"),
    pytest.param("abc", {}, (2, 1, 1, 0, 0), id="3 models, room for 2"),
]
LARGE = [
    pytest.param("abc", {}, (4, 1, 0, 0, 0), id="3 models, 4 requests, cancel"),
    pytest.param("abc", {}, (4, 0, 1, 0, 0), id="3 models, 4 requests, crash"),
    pytest.param("abc", {}, (4, 0, 0, 1, 0), id="3 models, 4 requests, hang"),
    pytest.param("abc", {}, (4, 0, 0, 0, 1), id="3 models, 4 requests, stop"),
    pytest.param("abc", {"max_loaded": 1}, (4, 1, 1, 1, 1), id="3 models, room for 1, everything"),
]


@pytest.mark.parametrize(
    ("models", "limits", "counts"), SMALL + (LARGE if os.environ.get("CAPIBARA_EXHAUSTIVE") else [])
)
def test_every_history_of_a_small_world(
    models: str, limits: dict[str, Any], counts: tuple[int, ...]
) -> None:
    """No effect is wrong, and whatever happened, every request can still be answered.

    The largest world takes long; CAPIBARA_EXHAUSTIVE=1 adds it.
    """
    budget = dict(zip(("arrive", "cancel", "crash", "hang", "stop"), counts, strict=True))
    exploration = Exploration(_world(models, **limits), budget, limit=3_000_000)
    print(f"{len(exploration.ids)} situations, {exploration.transitions} transitions")
    assert exploration.complete
    assert exploration.stuck() == 0


class Histories(RuleBasedStateMachine):
    """Any order of arrivals, departures, loads, failures, crashes, hangs and pauses."""

    models = "abcde"

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            name: ModelSettings(size=i + 1, priority=i, pinned=name == "e", max_requests=4)
            for i, name in enumerate(self.models)
        }
        self.owner = Owner.of(
            sizes, replace(_POLICY, max_loaded=4, warm_models=1, cores=3), budget=11
        )
        self.owner.tick()

    @rule(model=st.sampled_from(models))
    def arrive(self, model: str) -> None:
        self.owner.arrive(model)

    @precondition(lambda self: self.owner.waiting or self.owner.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        requests = sorted({**self.owner.waiting, **self.owner.running})
        self.owner.leave(data.draw(st.sampled_from(requests)))

    @precondition(lambda self: any(True for _ in kind_actions(self.owner)))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        actions = list(kind_actions(self.owner))
        data.draw(st.sampled_from(actions))[1](self.owner)

    @precondition(lambda self: self.owner.loading)
    @rule(data=st.data(), crashed=st.booleans())
    def load_fails(self, data: st.DataObject, crashed: bool) -> None:
        model = data.draw(st.sampled_from(sorted(self.owner.loading)))
        self.owner.load_fails(model, crashed=crashed)

    @precondition(lambda self: self.owner.serving)
    @rule(data=st.data(), hangs=st.booleans())
    def worker_fails(self, data: st.DataObject, hangs: bool) -> None:
        model = data.draw(st.sampled_from(sorted(self.owner.serving)))
        (self.owner.hang if hangs else self.owner.crash)(model)

    @rule(model=st.sampled_from(models))
    def unload(self, model: str) -> None:
        self.owner.send(events.UnloadRequested(model))

    @rule(
        model=st.sampled_from(models),
        report=st.sampled_from(
            [
                events.LoadSucceeded,
                events.WorkerExited,
                events.WorkerHung,
                events.CoresSet,
                lambda model, old: events.LoadFailed(model, old, "late"),
            ]
        ),
    )
    def report_late(self, model: str, report: Callable[[str, int], events.Event]) -> None:
        owner = self.owner
        current = {**owner.loading, **owner.serving, **owner.stopping}.get(model)
        if current is not None:
            owner.send(report(model, current - 1))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.owner.tick(seconds)

    @precondition(lambda self: self.owner.next_request > 12)
    @rule()
    def shut_down(self) -> None:
        self.owner.stop()

    def teardown(self) -> None:
        """Whatever happened, requests get their answer if workers do their part."""
        owner = self.owner
        for _ in range(300):
            if not (owner.waiting or owner.running):
                return
            actions = list(kind_actions(owner))
            assert actions, f"nothing can happen, and {owner.waiting} wait"
            actions[0][1](owner)
        raise AssertionError(f"never answered: {owner.waiting} {owner.running}")


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestHistories = Histories.TestCase
