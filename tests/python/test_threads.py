# SPDX-License-Identifier: Apache-2.0
"""Threads: their number changes no bit, other Python threads run meanwhile, calls may overlap."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from operators import DTYPES, OPERATORS, Variant
from products import PRODUCTS

import capibara_axion

each_operator = pytest.mark.parametrize("operator", [*OPERATORS, *PRODUCTS], ids=str)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    capibara_axion.set_num_threads(0)


@each_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_no_bit_depends_on_the_number_of_threads(
    rng: np.random.Generator, operator: Variant, dtype: np.dtype
) -> None:
    # Several times 128 KiB, below which a second thread is not used.
    arguments = operator.make(rng, 301, 1000, dtype)
    results = []
    for threads in (1, 2, 3, 7):
        capibara_axion.set_num_threads(threads)
        copies = {
            name: value.copy() if name in operator.in_place else value
            for name, value in arguments.items()
        }
        results.append([result.tobytes() for result in operator.run(copies)])
    assert all(result == results[0] for result in results)


def test_the_number_of_threads_is_reported() -> None:
    default = capibara_axion.get_num_threads()
    assert default >= 1
    capibara_axion.set_num_threads(3)
    assert capibara_axion.get_num_threads() == 3
    capibara_axion.set_num_threads(0)
    assert capibara_axion.get_num_threads() == default


@each_operator
def test_the_gil_is_released(rng: np.random.Generator, operator: Variant) -> None:
    """With a switch interval of an hour, another thread gets on only where the GIL is released."""
    arguments = operator.make(rng, 1024, 2000, DTYPES[0])
    gate, seen = threading.Lock(), threading.Event()

    def other() -> None:
        with gate:  # waits without the GIL, and needs it to go on
            seen.set()

    gate.acquire()
    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        gate.release()
        sum(range(1_000_000))
        held = not seen.is_set()  # or this test would prove nothing
        # Nothing in this loop gives the GIL away but the operator, which takes milliseconds.
        for _ in range(200):
            operator.run(arguments)
            if seen.is_set():
                break
        released = seen.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert held
    assert released


@each_operator
def test_calls_may_overlap(rng: np.random.Generator, operator: Variant) -> None:
    def call(seed: int) -> None:
        operator.check(operator.make(np.random.default_rng(seed), 40, 333, DTYPES[0]), str(seed))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(call, seed) for seed in range(16)]:
            future.result()
