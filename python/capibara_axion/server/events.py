# SPDX-License-Identifier: Apache-2.0
"""What the scheduler is told, and what it wants done."""

from __future__ import annotations

from dataclasses import dataclass

# Events: what happened.


@dataclass(frozen=True)
class RequestArrived:
    """A client asks for a model. `request` is a number of the owner's, never used twice."""

    request: int
    model: str


@dataclass(frozen=True)
class RequestEnded:
    """The request is over for whatever reason: answered, failed, or its client left."""

    request: int


@dataclass(frozen=True)
class LoadSucceeded:
    """The worker serves."""

    model: str
    generation: int


@dataclass(frozen=True)
class LoadFailed:
    """The load did not succeed, and its worker is gone."""

    model: str
    generation: int
    reason: str


@dataclass(frozen=True)
class WorkerExited:
    """The worker of a model that was ready or draining is gone."""

    model: str
    generation: int


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
    """Start a worker; report `LoadSucceeded` or `LoadFailed`."""

    model: str
    generation: int
    core_slot: int


@dataclass(frozen=True)
class StopWorker:
    """Stop the worker, at once if `force`; report `WorkerExited` (or `LoadFailed` if loading)."""

    model: str
    generation: int
    cause: str
    force: bool = False


Effect = Admit | Refuse | StartWorker | StopWorker
