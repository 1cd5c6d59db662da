# SPDX-License-Identifier: Apache-2.0
"""What the pool remembers of requests, workers and models."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

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
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Life:
    """A worker that was asked for: told to stop before it exists, it is killed when it does."""

    generation: int
    worker: Worker | None = None
    stopping: bool = False
    task: asyncio.Task[None] | None = None
