# SPDX-License-Identifier: Apache-2.0
"""Every operator against its reference, by derived tolerances. test_isa.py repeats this module
under each instruction set that runs here."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tolerances
from operators import BFLOAT16, DTYPES, FLOAT16, FLOAT32, VARIANTS, Variant, call_gated

from capibara_axion import _core, reference

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def test_the_forced_isa_is_the_chosen_one() -> None:
    """Or the best of those it includes, where there is no implementation for it."""
    if forced := os.environ.get("CAPIBARA_AXION_ISA"):
        assert _core.chosen_isa() == forced
        required = {isa["name"]: set(isa["required"]) for isa in _core.isas()}
        for op in _core.ops():
            included = [isa for isa in op["built"] if required[isa] <= required[forced]]
            assert op["chosen"] == included[-1], op


@each_variant
@each_dtype
def test_small_sizes(rng: np.random.Generator, variant: Variant, dtype: np.dtype) -> None:
    # Widest step: two vectors of 16 at two an iteration; 70 passes it with every remainder.
    for cols in range(71):
        variant.check(variant.make(rng, 1 + cols % 4, cols, dtype), f"cols={cols}")
    for rows in range(5):
        for cols in (0, 1, 33):
            results = variant.check(variant.make(rng, rows, cols, dtype), f"{rows}x{cols}")
            assert all(result.dtype == dtype for result in results)


@each_variant
@each_dtype
def test_large(rng: np.random.Generator, variant: Variant, dtype: np.dtype) -> None:
    for rows, cols in ((2, int(rng.integers(1000, 8000))), (int(rng.integers(50, 200)), 128)):
        variant.check(variant.make(rng, rows, cols, dtype), f"{rows}x{cols}")


# What a row may hold, besides a number in every other row.
SPECIAL = {
    "nan": [np.nan],
    "inf": [np.inf],
    "-inf": [-np.inf],
    "both": [np.inf, -np.inf],
    "all": [np.nan, np.inf, -np.inf],
}


@each_variant
@each_dtype
@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity(
    rng: np.random.Generator, variant: Variant, dtype: np.dtype, values: list[float]
) -> None:
    for cols in (3, 20, 67):
        arguments = variant.make(rng, 4, cols, dtype)
        name = next(name for name in ("x", "gate_up", "q") if name in arguments)
        # Small, because infinity times an activation that underflows to zero would be NaN.
        arguments[name] = (arguments[name].astype(np.float32) / 4).astype(dtype)
        for row in (1, 3):
            x = arguments[name][row]
            at = rng.choice(x.size, len(values), replace=False)
            x.reshape(-1)[at] = values
        variant.check(arguments, f"{values} cols={cols}")


@each_dtype
def test_softmax_of_nothing_but_minus_infinity(dtype: np.dtype) -> None:
    import capibara_axion

    x = np.full((2, 5), -np.inf, dtype)
    x[1, 0] = 0
    y = capibara_axion.softmax(x).astype(np.float32)
    assert np.isnan(y[0]).all()
    assert y[1].tolist() == [1, 0, 0, 0, 0]
    # A length leaves out what lies behind it, whatever that is.
    x[1, 1:] = np.nan
    y = capibara_axion.softmax(x, lengths=np.array([0, 1])).astype(np.float32)
    assert y.tolist() == [[0] * 5, [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("op", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
@each_dtype
def test_gated_over_the_whole_range(op: str, dtype: np.dtype) -> None:
    """Both tails, where exponentials overflow and results are subnormal, and huge values."""
    import capibara_axion

    small = np.linspace(-120, 120, 4001)
    gate = np.concatenate([small, np.geomspace(1e-30, 1e30, 301), -np.geomspace(1e-30, 1e30, 301)])
    gate = gate[np.abs(gate) < 6e4] if dtype == FLOAT16 else gate
    gate = gate.astype(dtype)
    up = np.where(np.arange(gate.size) % 2, 1.0, -3.0).astype(dtype)
    bound = getattr(tolerances, op.replace("_and_mul", "") + "_bound")(gate, up)
    exact = call_gated(reference, op, gate.astype(np.float64), up.astype(np.float64))
    tolerances.assert_within(call_gated(capibara_axion, op, gate, up), exact, bound, op)


@each_dtype
def test_norms_of_large_and_small_rows(rng: np.random.Generator, dtype: np.dtype) -> None:
    variants = [v for v in VARIANTS if v.op in ("rms_norm", "fused_add_rms_norm", "layer_norm")]
    for variant in variants:
        for factor in (1e-4, 1.0, 1e3):
            arguments = variant.make(rng, 3, 65, dtype)
            arguments["x"] = (arguments["x"].astype(np.float32) * factor).astype(dtype)
            variant.check(arguments, f"times {factor}")


@each_dtype
def test_layer_norm_far_from_zero(rng: np.random.Generator, dtype: np.dtype) -> None:
    """E[x^2] - E[x]^2 would lose all digits here."""
    variant = next(v for v in VARIANTS if v.op == "layer_norm")
    arguments = variant.make(rng, 3, 200, dtype)
    arguments["x"] = (1000 + 8 * arguments["x"].astype(np.float32)).astype(dtype)
    variant.check(arguments, "mean 1000")


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32], ids=lambda dtype: dtype.name)
def test_softmax_of_far_apart_values(rng: np.random.Generator, dtype: np.dtype) -> None:
    variant = next(v for v in VARIANTS if v.op == "softmax" and not v.options)
    arguments = variant.make(rng, 40, 50, dtype)
    arguments["x"] = (arguments["x"].astype(np.float32) * 20).astype(dtype)
    variant.check(arguments, "far apart")


def test_softmax_of_the_smallest_terms() -> None:
    """Every term of at least 2^-126 is there; a smaller one may be zero."""
    variant = next(v for v in VARIANTS if v.op == "softmax" and not v.options)
    arguments = variant.make(np.random.default_rng(0), 4000, 2, FLOAT32)
    arguments["x"][:, 0] = 0.0
    arguments["x"][:, 1] = np.linspace(-87.34, -87.32, 4000)
    variant.check(arguments, "smallest terms")
