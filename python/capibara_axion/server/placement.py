# SPDX-License-Identifier: Apache-2.0
"""What is to be loaded, and what must go for it: the part of the policy about room.

Room is a number of workers and a number of bytes. Models that somebody waits for come first, by
how long they have waited; then pinned ones; then, while nobody waits and evictions have ceased for
a while, the warm ones, which never push anything out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from capibara_axion.server.models import Model, ModelState
from capibara_axion.server.policy import Evictable, Policy, choose_victims

_EVICTIONS = frozenset({"evicted", "aged out", "cancelled", "memory"})


@dataclass
class Plan:
    """Model names with causes or reasons: what to stop, whose requests to refuse, what to start."""

    stop: list[tuple[str, str]] = field(default_factory=list)
    refuse: list[tuple[str, str]] = field(default_factory=list)
    start: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Room:
    slots: int
    size: float

    def fits(self, model: Model) -> bool:
        return self.slots >= 1 and self.size >= model.size

    def take(self, model: Model) -> None:
        self.slots -= 1
        self.size -= model.size


class Placement:
    """Decides over the scheduler's models, which it reads and, but for `retiring`, leaves alone.

    Args:
        models: the scheduler's own, by name.
        policy: limits.
        budget: bytes for all workers together; None: any number.
    """

    def __init__(self, models: Mapping[str, Model], policy: Policy, budget: int | None) -> None:
        self.budget = budget
        self._models = models
        self._policy = policy
        self._last_eviction = -math.inf
        self._warm = self._choose_warm()

    def reconfigure(self, policy: Policy) -> None:
        """Take over new limits and models."""
        self._policy = policy
        self._warm = self._choose_warm()

    def stopped(self, cause: str, now: float) -> None:
        """Remember that there was no room."""
        if cause in _EVICTIONS:
            self._last_eviction = now

    def is_warm(self, model: Model) -> bool:
        return model.name in self._warm

    def idle_deadline(self, model: Model) -> float:
        """When an unused ready model is to be unloaded; infinity for never."""
        if model.settings.pinned or self.is_warm(model):
            return math.inf
        keep = model.keep_alive_s
        if keep is None:
            keep = model.settings.keep_alive_s
        if keep is None:
            keep = self._policy.idle_unload_s
        return math.inf if keep < 0 else model.last_used + keep

    def deadlines(self) -> list[float]:
        """When a plan may come out differently though nothing has happened."""
        due = [arrived + self._policy.max_wait_s for arrived, *_ in self._wanted()]
        if any(self._models[name].state is ModelState.UNLOADED for name in self._warm):
            due.append(self._last_eviction + self._policy.warm_refill_s)
        return due

    def plan(self, now: float) -> Plan:
        """What to stop, refuse and start now."""
        plan = Plan()
        wanted = sorted(self._wanted(), key=lambda want: want[0])
        wanted += [(math.inf, model, cause) for model, cause in self._kept()]
        for model in self._models.values():
            if model.retiring == "aged out":
                model.retiring = ""  # unless it must be so again, below
        leaving = [m for m in self._models.values() if m.state is ModelState.DRAINING]
        now_free = self._room()
        then_free = _Room(now_free.slots + len(leaving), now_free.size + _size(leaving))
        loads = sum(model.state is ModelState.LOADING for model in self._models.values())
        if then_free.size < 0:
            then_free.size += _size(self._shrink(-then_free.size, now, plan))
        for arrived, model, cause in wanted:
            if self.budget is not None and model.size > self.budget:
                self._refuse_too_large(model, plan)
                continue
            if loads >= max(1, self._policy.cores):
                break
            if now_free.fits(model):
                loads += 1
                now_free.take(model)
                then_free.take(model)
                plan.start.append((model.name, cause))
                continue
            if not then_free.fits(model):
                freed = self._make_room(model, arrived, then_free, now, plan)
                then_free.slots += len(freed)
                then_free.size += _size(freed)
            if not then_free.fits(model) and now >= arrived + self._policy.max_wait_s:
                break  # whatever becomes free is for this one
            if then_free.fits(model):
                # What is on its way out is this model's, and so is what is free already.
                then_free.take(model)
                now_free.slots = min(now_free.slots, then_free.slots)
                now_free.size = min(now_free.size, then_free.size)
        if not wanted and now >= self._last_eviction + self._policy.warm_refill_s:
            self._refill(now_free, loads, plan)
        return plan

    def _wanted(self) -> Iterator[tuple[float, Model, str]]:
        for model in self._models.values():
            if model.state is not ModelState.UNLOADED or model.removed:
                continue
            if model.waiting:
                yield next(iter(model.waiting.values()))[0], model, "request"

    def _kept(self) -> list[tuple[Model, str]]:
        return [
            (model, "pinned")
            for model in self._models.values()
            if model.settings.pinned
            and model.state is ModelState.UNLOADED
            and not (model.waiting or model.parked or model.removed)
        ]

    def _refill(self, free: _Room, loads: int, plan: Plan) -> None:
        for name in self._warm:
            model = self._models[name]
            if model.state is not ModelState.UNLOADED or model.parked or model.removed:
                continue
            if loads < max(1, self._policy.cores) and free.fits(model):
                loads += 1
                free.take(model)
                plan.start.append((name, "warm"))

    def _make_room(
        self, model: Model, arrived: float, free: _Room, now: float, plan: Plan
    ) -> list[Model]:
        """Stop what may be stopped for `model`; the models whose room will be free."""
        slots = max(0, 1 - free.slots)
        size = math.ceil(max(0.0, model.size - free.size))
        going = {name for name, _ in plan.stop}
        present = [m for m in self._models.values() if m.name not in going]
        useless = [
            m
            for m in present
            if m.state is ModelState.LOADING and not (m.waiting or m.settings.pinned)
        ]
        idle = [m for m in present if m.idle and not m.settings.pinned]
        if (names := self._choose(useless + idle, slots, size, now)) is not None:
            chosen = [self._models[name] for name in names]
            for victim in chosen:
                cancelled = victim.state is ModelState.LOADING
                plan.stop.append((victim.name, "cancelled" if cancelled else "evicted"))
            return chosen
        if now >= arrived + self._policy.max_wait_s:
            ready = [m for m in present if m.state is ModelState.READY and not m.settings.pinned]
            busy = [m for m in ready if m.running or not _was_wanted_before(m, arrived)]
            for name in self._choose(busy, slots, size, now) or ():
                if not self._models[name].retiring:
                    self._models[name].retiring = "aged out"
        return []

    def _shrink(self, excess: float, now: float, plan: Plan) -> list[Model]:
        """Stop idle models that together take `excess` bytes too many, or as many as there are."""
        idle = [m for m in self._models.values() if m.idle and not m.settings.pinned]
        names = self._choose(idle, 0, math.ceil(excess), now)
        chosen = idle if names is None else [self._models[name] for name in names]
        plan.stop += [(victim.name, "memory") for victim in chosen]
        return chosen

    def _choose(
        self, candidates: list[Model], slots: int, size: int, now: float
    ) -> list[str] | None:
        return choose_victims(
            [
                Evictable(
                    m.name,
                    m.size,
                    0.0 if m.running else now - m.last_used,
                    m.settings.priority,
                    self.is_warm(m),
                )
                for m in candidates
            ],
            slots=slots,
            size=size,
        )

    def _refuse_too_large(self, model: Model, plan: Plan) -> None:
        assert self.budget is not None
        needed, there = model.size / 2**30, self.budget / 2**30
        reason = (
            f"the model {model.name!r} needs about {needed:.2f} GiB of memory, and all models "
            f"together may take {there:.2f} GiB here"
        )
        plan.refuse.append((model.name, reason))

    def _room(self) -> _Room:
        present = [m for m in self._models.values() if m.has_worker]
        size = math.inf if self.budget is None else self.budget - _size(present)
        return _Room(self._policy.max_loaded - len(present), size)

    def _choose_warm(self) -> tuple[str, ...]:
        unpinned = [m for m in self._models.values() if not m.settings.pinned and not m.removed]
        unpinned.sort(key=lambda model: -model.settings.priority)
        return tuple(m.name for m in unpinned[: self._policy.warm_models])


def _size(models: list[Model]) -> int:
    return sum(model.size for model in models)


def _was_wanted_before(model: Model, arrived: float) -> bool:
    """Whether somebody waits for it who came first: then it must not go without an answer."""
    return any(at <= arrived for at, _ in model.waiting.values())
