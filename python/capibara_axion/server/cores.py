# SPDX-License-Identifier: Apache-2.0
"""Who computes on which cores: a lease for every model that is at work.

Engines whose threads share cores slow each other down many times over, and a model that is alone
wants them all. So the cores are divided among the models that are loading or have requests, and
divided anew when that changes. Idle models hold none; the setting of their workers stays until
they are given cores again.

A worker changes its cores between two steps of its engine. Until it has, whoever is to get those
cores waits, but no longer than `wait_s`: then both compute on them for a while. With more models
at work than cores, some share a core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Cores = frozenset[int]


@dataclass(frozen=True)
class Holder:
    """A model at work: how many cores it can use, and whether it is still loading."""

    name: str
    least: int = 1
    most: int | None = None
    loading: bool = False


@dataclass
class _Lease:
    since: float
    target: Cores


@dataclass
class _Worker:
    applied: Cores
    asked: Cores | None = None

    @property
    def reach(self) -> Cores:
        """Where it may be computing now."""
        return self.applied | (self.asked or frozenset())


class CoreLeases:
    """The leases and what each worker is set to. Pure: the caller brings the time.

    Args:
        cores: how many there are; they are numbered from 0.
        wait_s: how long to wait for cores that others are giving back.
    """

    def __init__(self, cores: int, wait_s: float) -> None:
        self._cores = cores
        self._wait_s = wait_s
        self._leases: dict[str, _Lease] = {}
        self._workers: dict[str, _Worker] = {}

    def started(self, name: str) -> tuple[int, ...]:
        """The cores that a worker, which holds a lease since `divide`, is started on."""
        self._workers[name] = _Worker(self._leases[name].target)
        return tuple(sorted(self._leases[name].target))

    def gone(self, name: str) -> None:
        """The worker is gone."""
        self._workers.pop(name, None)
        self._leases.pop(name, None)

    def confirm(self, name: str) -> None:
        """The worker computes on the cores that it was last asked to."""
        worker = self._workers.get(name)
        if worker is not None and worker.asked is not None:
            worker.applied, worker.asked = worker.asked, None

    def divide(self, holders: Sequence[Holder], now: float) -> None:
        """Lease all cores to the models at work, changing as little as possible."""
        names = {holder.name for holder in holders}
        for name in list(self._leases):
            if name not in names:
                del self._leases[name]
        counts = _shares(holders, self._cores)
        taken: set[int] = set()
        kept: dict[str, list[int]] = {}
        for holder in holders:
            had = self._leases[holder.name].target if holder.name in self._leases else frozenset()
            mine = self._preferred(holder.name, had - taken)
            kept[holder.name] = mine[: counts[holder.name]]
            taken.update(kept[holder.name])
        for holder in holders:
            self._fill(kept, holder.name, counts[holder.name])
        for holder in holders:
            target = frozenset(kept[holder.name])
            lease = self._leases.get(holder.name)
            if lease is None:
                self._leases[holder.name] = _Lease(now, target)
            elif lease.target != target:
                lease.target, lease.since = target, now

    def requests(self, now: float) -> list[tuple[str, tuple[int, ...]]]:
        """The workers that must be told of new cores now, each with its cores."""
        asks = self._asks(now)
        if not asks and not any(worker.asked for worker in self._workers.values()):
            # Nobody has anything to give back before it gets what another one is on: they exchange.
            asks = self._asks(now, exchange=True)
        return asks

    def _asks(self, now: float, exchange: bool = False) -> list[tuple[str, tuple[int, ...]]]:
        asks = []
        for name, lease in self._leases.items():
            worker = self._workers.get(name)
            if worker is None or worker.asked is not None or worker.applied == lease.target:
                continue
            cores = lease.target
            may_take = exchange or self._free(name) or self._overdue(lease, now)
            if not (cores <= worker.applied or may_take):
                # Others wait for what it has to give back: that it can do already.
                cores &= worker.applied
            if cores and cores != worker.applied:
                worker.asked = cores
                asks.append((name, tuple(sorted(cores))))
        return asks

    def may_compute(self, name: str, now: float) -> bool:
        """Whether a request of this model may be admitted."""
        lease, worker = self._leases.get(name), self._workers.get(name)
        if lease is None or worker is None:
            return False
        in_effect = worker.applied == lease.target and worker.asked is None
        return (in_effect and self._free(name)) or self._overdue(lease, now)

    def deadline(self, now: float) -> float | None:
        """When waiting for cores ends, or None when nobody waits."""
        waiting = [
            lease.since + self._wait_s
            for name, lease in self._leases.items()
            if name in self._workers and not self.may_compute(name, now)
        ]
        return min(waiting, default=None)

    def of(self, name: str) -> tuple[int, ...]:
        """The cores leased to a model; empty when it is not at work."""
        return tuple(sorted(self._leases[name].target)) if name in self._leases else ()

    def _overdue(self, lease: _Lease, now: float) -> bool:
        return now >= lease.since + self._wait_s

    def _free(self, name: str) -> bool:
        """Whether no other model at work is still on cores that are not leased to it any more."""
        target = self._leases[name].target
        return not any(
            target & (worker.reach - self._leases[other].target)
            for other, worker in self._workers.items()
            if other != name and other in self._leases
        )

    def _fill(self, kept: dict[str, list[int]], name: str, count: int) -> None:
        users = [sum(core in cores for cores in kept.values()) for core in range(self._cores)]
        order = self._preferred(name, range(self._cores))
        order.sort(key=lambda core: users[core])
        missing = [core for core in order if core not in kept[name]]
        kept[name] += missing[: count - len(kept[name])]

    def _preferred(self, name: str, cores: Iterable[int]) -> list[int]:
        """The cores in order, but first those that the model's worker is set to already."""
        worker = self._workers.get(name)
        applied = worker.applied if worker else frozenset()
        return sorted(cores, key=lambda core: (core not in applied, core))


def _shares(holders: Sequence[Holder], cores: int) -> dict[str, int]:
    """How many cores each gets: an equal part, but a load only the least beside models at work."""
    at_work = [holder for holder in holders if not holder.loading] or list(holders)
    counts = {holder.name: min(holder.least, cores) for holder in holders}
    left = cores - sum(counts.values())
    while left > 0:
        hungry = [
            holder
            for holder in at_work
            if counts[holder.name] < cores
            and (holder.most is None or counts[holder.name] < holder.most)
        ]
        if not hungry:
            break
        for holder in sorted(hungry, key=lambda h: counts[h.name])[:left]:
            counts[holder.name] += 1
            left -= 1
    return counts
