# SPDX-License-Identifier: Apache-2.0
"""How rows of `bench kernels` are read: for its table, and for reports."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence

from capibara_axion.bench.kernels.timing import quartiles
from capibara_axion.bench.results import KernelRow, Roof

PEERS = ("torch", "vLLM", "NumPy")  # the families that ours is compared with


def by_case(rows: Sequence[KernelRow]) -> Iterator[list[KernelRow]]:
    """The contenders of each case together."""
    groups = itertools.groupby(rows, lambda row: (row.op, row.dtype, row.shape, row.threads))
    for _, group in groups:
        yield list(group)


def fastest(rows: Sequence[KernelRow], *families: str) -> KernelRow | None:
    """Of the contenders of a case that belong to these families; None: there is none."""
    matching = [row for row in rows if row.contender.split()[0] in families]
    return min(matching, key=median, default=None)


def median(row: KernelRow) -> float:
    """Seconds a call."""
    return statistics.median(row.samples_s)


def ratio(own: KernelRow, peer: KernelRow) -> tuple[float, float, float]:
    """The median of the ratios peer / own within the rounds, and their quartiles."""
    ratios = [b / a for a, b in zip(own.samples_s, peer.samples_s, strict=False)]
    return statistics.median(ratios), *quartiles(ratios)


def peak_type(op: str, dtype: str) -> str:
    """In which type an operator multiplies: its peak is the one to be compared with."""
    if op in ("linear_int8", "linear_int4"):
        return "int8"
    return dtype if op.startswith(("linear", "attention")) else "f32"


def bandwidth(roof: Roof) -> float:
    """Bytes per second: of reading or of copying, whichever is faster."""
    return max(roof.read_bytes_per_s, roof.copy_bytes_per_s)
