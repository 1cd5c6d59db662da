# SPDX-License-Identifier: Apache-2.0
"""The same contenders under pytest-benchmark, for its statistics and its comparison of runs.

    pytest benchmarks -k "rms_norm and bf16" --benchmark-autosave

One group a case. The contenders of a group are timed one after the other, not in turn: for ratios
take `run.py`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import machine
from capibara_axion.bench.kernels import cases, timing
from capibara_axion.bench.kernels.cases import Case
from capibara_axion.bench.kernels.contenders import (
    Contender,
    Prepared,
    contenders,
    enter,
    installed,
)

enter(installed())
machine.tune_malloc()


def _parameters() -> Iterator[Any]:
    for op in cases.OPS:
        rows = itertools.product(cases.dtypes(op), cases.shapes(op), (1, 2))
        for dtype, shape, threads in rows:
            case = Case(op, dtype, threads=threads, **shape)
            for one in contenders(case, compiled=False):
                yield pytest.param(case, one, id=f"{case}-{one}".replace(" ", "_"))


@functools.lru_cache(maxsize=1)  # cases come one after the other
def _inputs(case: Case) -> cases.Inputs:
    return case.inputs()


@pytest.mark.parametrize(("case", "one"), list(_parameters()))
def test_op(benchmark: Any, case: Case, one: Contender) -> None:
    benchmark.group = str(case)
    benchmark.name = str(one)
    with torch.inference_mode():
        torch.set_num_threads(case.threads)
        prepared = Prepared(one, case, _inputs(case))
        prepared.check()
        prepared.reset()
        benchmark.pedantic(
            prepared.call,
            rounds=20,
            iterations=timing.calls_a_sample(prepared.call),
            warmup_rounds=1,
        )
