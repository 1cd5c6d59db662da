# SPDX-License-Identifier: Apache-2.0
"""The limits and wishes that the scheduler keeps. Times are in seconds, sizes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """What holds for all models.

    Attributes:
        max_loaded: workers that may exist at once, starting and stopping ones included.
        max_requests: requests that may wait or run at once, all models together.
        cores: how many cores there are to compute on.
        warm_models: how many models, by priority, are kept loaded while there is room.
        warm_refill_s: pause between the last eviction and loading warm models again.
        idle_unload_s: a ready model is unloaded this long after its last request ended.
        load_timeout_s: a load that takes longer has failed.
        queue_timeout_s: a request that has waited longer is refused.
        max_wait_s: a request that has waited longer for room makes busy models take no new
            requests, so that there is room once they have answered what they have.
        backoff_s, backoff_max_s: pause after a failed load, doubled with each further one.
        stop_grace_s: a worker that has not ended so long after it was told to is killed.
        cores_wait_s: how long an admission waits for cores that other models are giving back.
        cores_linger_s: how long a model keeps its cores after its last request.
    """

    max_loaded: int
    max_requests: int = 256
    cores: int = 1
    warm_models: int = 0
    warm_refill_s: float = 10.0
    idle_unload_s: float = 300.0
    load_timeout_s: float = 600.0
    queue_timeout_s: float = 600.0
    max_wait_s: float = 30.0
    backoff_s: float = 10.0
    backoff_max_s: float = 300.0
    stop_grace_s: float = 10.0
    cores_wait_s: float = 0.25
    cores_linger_s: float = 0.5

    def backoff(self, failures: int) -> float:
        """The pause after so many failures in a row, 0 for none."""
        if failures <= 0:
            return 0.0
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True)
class ModelSettings:
    """What holds for one model.

    Attributes:
        size: bytes that it is expected to take.
        priority: a higher one is kept warm first and evicted last.
        pinned: always loaded, never evicted.
        keep_alive_s: instead of the policy's `idle_unload_s`; negative: for ever.
        max_requests: requests that may wait or run at once.
        least_cores, most_cores: how many cores it can compute on; None: any number.
    """

    size: int = 0
    priority: int = 0
    pinned: bool = False
    keep_alive_s: float | None = None
    max_requests: int = 64
    least_cores: int = 1
    most_cores: int | None = None


@dataclass(frozen=True)
class Evictable:
    """A loaded model that could make room."""

    name: str
    size: int
    idle_s: float
    priority: int
    warm: bool

    @property
    def _key(self) -> tuple[bool, float]:
        # Long idle, large and unimportant ones first; whatever is to be kept warm last.
        weight = self.size / 2**30 if self.size else 1.0
        return self.warm, -(self.idle_s + 1.0) * weight / (1.0 + max(0, self.priority))


def choose_victims(candidates: Sequence[Evictable], *, slots: int, size: int) -> list[str] | None:
    """The models to evict so that `slots` workers and `size` bytes become free.

    None when all of them together would not do. A model that turned out not to be needed, once
    larger ones were chosen, is spared.
    """
    chosen: list[Evictable] = []
    for candidate in sorted(candidates, key=lambda c: (c._key, c.name)):
        if len(chosen) >= slots and sum(c.size for c in chosen) >= size:
            break
        chosen.append(candidate)
    if len(chosen) < slots or sum(c.size for c in chosen) < size:
        return None
    for candidate in list(reversed(chosen)):
        rest = [c for c in chosen if c is not candidate]
        if len(rest) >= slots and sum(c.size for c in rest) >= size:
            chosen = rest
    return [c.name for c in chosen]
