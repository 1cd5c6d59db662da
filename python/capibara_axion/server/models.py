# SPDX-License-Identifier: Apache-2.0
"""What the scheduler remembers of one model."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from capibara_axion.server.policy import ModelSettings


class ModelState(enum.Enum):
    """Where a model is in its life; see `scheduler`."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class ModelView:
    """What the outside may know of a model. Times are the scheduler's, sizes in bytes."""

    state: ModelState
    since: float
    waiting: int
    running: int
    oldest_wait: float | None
    cores: tuple[int, ...]
    size: int
    warm: bool
    pinned: bool
    retiring: str
    failure: str
    failures: int


@dataclass
class Model:
    """A model's state and its requests.

    Attributes:
        size: bytes that it takes or would take.
        generation: number of the latest start of a worker.
        started: the worker of this load has been asked for.
        waiting: request -> (arrival, deadline), in order of arrival.
        keep_alive_s: what the latest request asked for.
        load_cause: why it is being loaded: "request", "warm" or "pinned".
        parked: an operator wants it unloaded until somebody asks for it.
        retiring: why it takes no new requests and is stopped after the running ones, or "".
        hung: it is being stopped because it made no progress.
        removed: it is no longer in the configuration.
        failure: why it is failed, or why its stopping will end in `failed`.
        crashed: its worker died once without a word; forgotten with the next answer.
        failures: pauses in a row, without an answer between them.
        retry_at: when a failed model may be loaded again.
    """

    name: str
    settings: ModelSettings
    size: int = 0
    state: ModelState = ModelState.UNLOADED
    generation: int = 0
    started: bool = False
    since: float = 0.0
    last_used: float = 0.0
    waiting: dict[int, tuple[float, float]] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    keep_alive_s: float | None = None
    load_cause: str = ""
    parked: bool = False
    retiring: str = ""
    hung: bool = False
    removed: bool = False
    failure: str = ""
    crashed: bool = False
    failures: int = 0
    retry_at: float = 0.0

    @property
    def has_worker(self) -> bool:
        """Whether a worker exists or is on its way to or from existing."""
        return self.state in (ModelState.LOADING, ModelState.READY, ModelState.DRAINING)

    @property
    def idle(self) -> bool:
        """Whether stopping it now would disturb nobody."""
        return self.state is ModelState.READY and not self.running and not self.waiting

    def enter(self, state: ModelState, now: float) -> None:
        """Change state, and forget what belonged to the one before."""
        self.state = state
        self.since = now
        if state is ModelState.LOADING:
            self.started = False
        if not self.has_worker:
            self.retiring = ""
        if state is ModelState.UNLOADED:
            self.failure = ""

    def view(self, cores: tuple[int, ...], warm: bool) -> ModelView:
        return ModelView(
            state=self.state,
            since=self.since,
            waiting=len(self.waiting),
            running=len(self.running),
            oldest_wait=min((arrived for arrived, _ in self.waiting.values()), default=None),
            cores=cores,
            size=self.size,
            warm=warm,
            pinned=self.settings.pinned,
            retiring=self.retiring,
            failure=self.failure,
            failures=self.failures,
        )
