# SPDX-License-Identifier: Apache-2.0
"""Measures what was selected, row by row."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from capibara_axion import set_num_threads
from capibara_axion.bench.kernels import roofs, timing
from capibara_axion.bench.kernels.cases import Case, Inputs, dtypes, shapes
from capibara_axion.bench.kernels.contenders import (
    Contender,
    Prepared,
    WrongResult,
    contenders,
)
from capibara_axion.bench.results import KernelRow, Roof

_ROOF_ROUNDS = 3


@dataclass
class Settings:
    """What is to be measured, and for how long.

    Attributes:
        ops, dtypes, threads: every combination is a case, for each shape of the operator.
        tokens: only shapes of so many; None: all.
        rounds: in which every contender takes part, at least.
        time_s: for the rounds of a row.
        compiled: also contenders that torch.compile has to compile.
    """

    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    tokens: tuple[int, ...] | None
    threads: tuple[int, ...]
    rounds: int
    time_s: float
    compiled: bool

    def cases(self) -> Iterator[Case]:
        """All that were selected, those with the same inputs one after the other."""
        for op, dtype in itertools.product(self.ops, self.dtypes):
            if dtype in dtypes(op):
                for shape, threads in itertools.product(shapes(op, self.tokens), self.threads):
                    yield Case(op, dtype, threads=threads, **shape)


@dataclass
class Measurement:
    """Takes the times of one case after the other.

    Attributes:
        settings: of all cases.
        left_out: contenders that could not take part, and why.
        failed: one of ours is among them.
    """

    settings: Settings
    left_out: list[str] = field(default_factory=list)
    failed: bool = False

    def rows(self, cases: Iterable[Case]) -> Iterator[list[KernelRow]]:
        """The rows of each case: one for each contender, ours first."""
        same_inputs = itertools.groupby(cases, lambda case: (case.op, case.dtype, case.shape))
        for _, group in same_inputs:
            inputs = None
            for case in group:
                inputs = inputs or case.inputs()
                timings = self._times(
                    case, inputs, time_s=self.settings.time_s, rounds=self.settings.rounds
                )
                yield [_row(case, name, one) for name, one in timings.items() if one.seconds]

    def roof(self, threads: int) -> Roof:
        """What so many threads can do at most here."""
        size = roofs.buffer_bytes()
        bandwidth = roofs.bandwidth(threads, size)
        peaks = {}
        for name, case in roofs.peak_cases(threads).items():
            timings = self._times(case, case.inputs(), time_s=0.0, rounds=_ROOF_ROUNDS)
            times = [min(one.seconds) for name, one in timings.items() if "memcpy" not in name]
            if times:
                peaks[name] = case.operations / min(times)
        return Roof(
            threads=threads,
            read_bytes_per_s=bandwidth["read"],
            copy_bytes_per_s=bandwidth["copy"],
            buffer_bytes=size,
            operations_per_s=peaks,
        )

    def _times(
        self, case: Case, inputs: Inputs, *, time_s: float, rounds: int
    ) -> dict[str, timing.Timing]:
        with _threads(case.threads):
            prepared = dict(self._prepared(case, inputs))
            if not prepared:
                return {}
            return timing.interleave(
                {name: one.call for name, one in prepared.items()},
                time_s,
                reset=lambda name: prepared[name].reset(),
                min_rounds=rounds,
            )

    def _prepared(self, case: Case, inputs: Inputs) -> Iterator[tuple[str, Prepared]]:
        for one in contenders(case, compiled=self.settings.compiled):
            if ready := self._ready(one, case, inputs):
                yield str(one), ready

    def _ready(self, one: Contender, case: Case, inputs: Inputs) -> Prepared | None:
        """The contender, if it can compute the case, and rightly: the others go on without it."""
        try:
            prepared = Prepared(one, case, inputs)
            prepared.check()
        except WrongResult as error:
            reason = str(error)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            reason = f"{case}: {one}: {type(error).__name__}: {first}"
        else:
            return prepared
        self.left_out.append(reason)
        self.failed |= one.family == "ours"
        return None


def _row(case: Case, contender: str, times: timing.Timing) -> KernelRow:
    return KernelRow(
        op=case.op,
        shape=case.shape,
        dtype=case.dtype,
        threads=case.threads,
        contender=contender,
        samples_s=times.seconds,
        bytes=case.bytes_moved,
        operations=case.operations,
    )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Has ours, and torch if it takes part, compute with so many threads, as vLLM would."""
    torch: Any = sys.modules.get("torch")
    set_num_threads(count)
    try:
        if torch is None:
            yield
        else:
            torch.set_num_threads(count)
            with torch.inference_mode():
                yield
    finally:
        set_num_threads(0)
