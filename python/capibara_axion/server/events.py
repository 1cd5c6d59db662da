# SPDX-License-Identifier: Apache-2.0
"""What the scheduler is told, and what it wants done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capibara_axion.server.policy import ModelSettings, Policy

# Events: what happened.


@dataclass(frozen=True)
class RequestArrived:
    """A client asks for a model.

    Attributes:
        request: a number of the owner's, never used twice.
        model: whom it asks.
        deadline: when its client will have given up, in the scheduler's time; None: unknown.
        keep_alive_s: how long the model stays after this request; None: as configured.
        replay: the request was admitted before, and its worker was lost before it had answered.
    """

    request: int
    model: str
    deadline: float | None = None
    keep_alive_s: float | None = None
    replay: bool = False


@dataclass(frozen=True)
class RequestEnded:
    """The request is over: `served` by its worker, or failed, or left by its client."""

    request: int
    served: bool = False


@dataclass(frozen=True)
class LoadSucceeded:
    """The worker serves."""

    model: str
    generation: int


@dataclass(frozen=True)
class LoadFailed:
    """The load did not succeed, and its worker is gone; `crashed`: without saying why."""

    model: str
    generation: int
    reason: str
    crashed: bool = False


@dataclass(frozen=True)
class WorkerExited:
    """The worker of a model that was ready or draining is gone."""

    model: str
    generation: int


@dataclass(frozen=True)
class WorkerHung:
    """The worker of a ready model makes no progress any more."""

    model: str
    generation: int


@dataclass(frozen=True)
class CoresSet:
    """The last `SetCores` of this worker is in effect."""

    model: str
    generation: int


@dataclass(frozen=True)
class MemoryKnown:
    """How many bytes a model takes or would take, by a better estimate than before."""

    model: str
    size: int


@dataclass(frozen=True)
class BudgetKnown:
    """How many bytes all workers together may take from now on."""

    size: int


@dataclass(frozen=True)
class UnloadRequested:
    """An operator wants the model unloaded, once its running requests have ended."""

    model: str


@dataclass(frozen=True)
class Reconfigured:
    """The configuration changed.

    Attributes:
        models: all models there are now, with their settings.
        reload: those whose loaded workers are out of date.
        policy: limits from now on.
    """

    models: Mapping[str, ModelSettings]
    reload: frozenset[str]
    policy: Policy


@dataclass(frozen=True)
class Tick:
    """Time passed; due at `Scheduler.next_deadline()`."""


@dataclass(frozen=True)
class ShutdownRequested:
    """Admit nothing more and stop each worker once its running requests have ended."""


Event = (
    RequestArrived
    | RequestEnded
    | LoadSucceeded
    | LoadFailed
    | WorkerExited
    | WorkerHung
    | CoresSet
    | MemoryKnown
    | BudgetKnown
    | UnloadRequested
    | Reconfigured
    | Tick
    | ShutdownRequested
)


# Effects: what the owner must do.


@dataclass(frozen=True)
class Admit:
    """Send the request to the model's worker now."""

    request: int
    model: str


@dataclass(frozen=True)
class Refuse:
    """Answer the request with an error."""

    request: int
    reason: str
    code: str
    retry_after_s: int


@dataclass(frozen=True)
class StartWorker:
    """Start a worker on these cores; report `LoadSucceeded` or `LoadFailed`."""

    model: str
    generation: int
    cores: tuple[int, ...]
    cause: str


@dataclass(frozen=True)
class StopWorker:
    """Stop the worker, at once if `force`; report `WorkerExited` (or `LoadFailed` if loading)."""

    model: str
    generation: int
    cause: str
    force: bool = False


@dataclass(frozen=True)
class SetCores:
    """Have the worker compute on these cores; report `CoresSet`."""

    model: str
    generation: int
    cores: tuple[int, ...]


Effect = Admit | Refuse | StartWorker | StopWorker | SetCores
