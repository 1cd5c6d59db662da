# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured: the roofs of Williams, Waterman and Patterson's
roofline model (Communications of the ACM 52(4), 2009)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from capibara_axion import info
from capibara_axion.bench.kernels.arrays import full
from capibara_axion.bench.kernels.cases import Case
from capibara_axion.bench.kernels.memory import copying, reading

_PASSES = 8
_CUBE: dict[str, Any] = {"tokens": 1024, "outputs": 1024, "features": 1024}
# Larger than the caches, if they are one machine's; those of a virtual one may be many others'.
_LEAST, _MOST = 64 << 20, 512 << 20


def buffer_bytes() -> int:
    """Of what bandwidth is measured on: four times the last cache, from 64 to 512 MiB, and at most
    a sixteenth of the memory that is free."""
    wanted: int = max(_LEAST, min(_MOST, 4 * info.collect()["machine"]["l3_bytes"]))
    return min(wanted, int(psutil.virtual_memory().available // 16))


def bandwidth(threads: int, size: int) -> dict[str, float]:
    """Bytes per second of a plain read (memchr) and of a copy (memmove, bytes read and written).

    Every thread has a part of the memory for itself; the fastest of eight passes counts.

    Args:
        threads: of Python; the C library's functions run outside of the interpreter's lock.
        size: bytes that are read, or read and written, in a pass.
    """
    part = size // 2 // threads
    with ThreadPoolExecutor(threads) as pool:
        # Who uses memory touches it first, so that it is near its own core.
        buffers = list(pool.map(lambda _: (full(part, 0), full(part, 0)), range(threads)))
        copies = [copying(target, source) for target, source in buffers]
        reads = [reading(one) for pair in buffers for one in pair]

        def best(calls: list[Callable[[], Any]]) -> float:
            return 2 * part * threads / min(_passes(pool, calls))

        return {"read": best(reads), "copy": best(copies)}


def _passes(pool: ThreadPoolExecutor, calls: list[Callable[[], Any]]) -> Iterable[float]:
    for _ in range(_PASSES):
        begin = time.perf_counter()
        list(pool.map(lambda call: call(), calls))
        yield time.perf_counter() - begin


def peak_cases(threads: int) -> dict[str, Case]:
    """What the peak of each type is measured with."""
    return {
        "f32": Case("linear", "f32", threads=threads, **_CUBE),
        "bf16": Case("linear", "bf16", threads=threads, **_CUBE),
        "int8": Case("linear_int8", "bf16", threads=threads, **_CUBE),
    }
