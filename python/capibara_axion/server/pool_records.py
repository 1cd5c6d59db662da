# SPDX-License-Identifier: Apache-2.0
"""What the pool remembers of requests, workers and models."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from capibara_axion.server.control import BEAT_S
from capibara_axion.server.launcher import Worker


@dataclass
class Turn:
    """A request's permission to use a worker.

    Attributes:
        worker: where to send it.
        queue_s: how long it waited in all.
        load_s: how much of that the model was loading.
        served: to be set once the worker has answered.
    """

    worker: Worker
    queue_s: float
    load_s: float
    served: bool = False


class Throughput:
    """How fast a worker generates, by what it said within the last `WINDOW_S`."""

    WINDOW_S = 2.0

    def __init__(self) -> None:
        beats = round(self.WINDOW_S / BEAT_S) + 1
        self._beats: deque[tuple[float, int]] = deque(maxlen=beats)

    def beat(self, tokens: int, now: float) -> None:
        """Take in how many tokens there were so far."""
        self._beats.append((now, tokens))

    @property
    def tokens_per_s(self) -> float:
        """Of all requests together."""
        if len(self._beats) < 2:
            return 0.0
        (began, before), (ended, after) = self._beats[0], self._beats[-1]
        return round((after - before) / (ended - began), 1) if ended > began else 0.0


@dataclass
class Counters:
    """What is counted of one model, and its latest load; times are the event loop's."""

    loads: int = 0
    load_failures: int = 0
    unloads: Counter[str] = field(default_factory=Counter)
    worker_exits: int = 0
    requests: int = 0
    last_load_s: float | None = None
    load_began: float = 0.0
    load_ended: float = 0.0
    throughput: Throughput = field(default_factory=Throughput)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Life:
    """A worker that was asked for: told to stop before it exists, it is killed when it does."""

    generation: int
    worker: Worker | None = None
    stopping: bool = False
    task: asyncio.Task[None] | None = None
