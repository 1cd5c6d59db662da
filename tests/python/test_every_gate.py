# SPDX-License-Identifier: Apache-2.0
"""The gated activations over all 65,536 gates of a 16-bit type."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import capibara_axion

# Where exponentials overflow, a result this close to zero may be zero: see math-inl.h.
TINY = 1e-35


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype", [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)], ids=str)
@pytest.mark.parametrize("exact", [silu, gelu_tanh])
def test_every_gate(exact: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> None:
    """Each is the correctly rounded value or next to it; NaN and infinities are the reference's."""
    gate = np.arange(2**16, dtype=np.uint16).view(dtype)
    up = np.ones_like(gate)
    if exact is silu:
        got = capibara_axion.silu_and_mul(gate, up)
    else:
        got = capibara_axion.gelu_and_mul(gate, up, approximate="tanh")
    with np.errstate(all="ignore"):
        wide = exact(gate.astype(np.float64))
        expected = wide.astype(dtype)
    is_nan = np.isnan(wide)
    np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), is_nan)
    tiny = ~is_nan & (np.abs(wide) < TINY)
    assert np.abs(got[tiny].astype(np.float64)).max(initial=0) <= TINY
    # Neighbours of one sign differ by one as whole numbers; infinity is next to the largest.
    rest = ~is_nan & ~tiny
    bits = [values[rest].view(np.uint16).astype(np.int32) for values in (got, expected)]
    apart = np.abs(bits[0] - bits[1])
    assert apart.max() <= 1
    assert (apart != 0).mean() < 0.01
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(got[infinite], expected[infinite])
