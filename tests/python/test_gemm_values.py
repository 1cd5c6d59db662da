# SPDX-License-Identifier: Apache-2.0
"""The matrix products against float64, by derived tolerances. test_environment.py repeats this
module under each instruction set that runs here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import BFLOAT16, DTYPES, FLOAT16, FLOAT32, Array, Variant, normal, wide
from products import (
    ACTIVATIONS,
    EMULATED,
    PRODUCTS,
    TYPES,
    expect_linear,
    expect_matmul,
    expect_packed,
)

import capibara_axion as ax
from capibara_axion import reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
each_type = pytest.mark.parametrize("packed", TYPES)
each_product = pytest.mark.parametrize("product", PRODUCTS, ids=str)
EXAMPLES = 15 if EMULATED else 60

# Around every tile's rows, columns and depths, and nothing at all.
ROWS = st.integers(0, 20)
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([0, 1, 2, 3, 31, 97, 127, 128, 129, 257]))


def check_matmul(a: Array, b: Array, what: str) -> None:
    exact, bound = expect_matmul(a, b)
    tolerances.assert_within(ax.matmul(a, b), exact, bound, what)


@each_dtype
def test_every_number_of_rows(rng: np.random.Generator, dtype: np.dtype) -> None:
    for m in range(21):
        n, k = int(rng.integers(1, 50)), int(rng.integers(1, 60))
        a, b = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype)
        check_matmul(a, b, f"{m}x{n}x{k}")
        check_matmul(a, np.array(b.T, order="C").T, f"{m}x{n}x{k} of a transpose")


@settings(max_examples=EXAMPLES, deadline=None)
@given(m=ROWS, n=SIZES, k=SIZES, dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_matmul(m: int, n: int, k: int, dtype: np.dtype, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    a, b = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype)
    if data.draw(st.booleans()):
        b = np.array(b.T, order="C").T
    check_matmul(a, b, f"{m}x{n}x{k} {dtype}")


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    m=ROWS,
    n=SIZES,
    k=SIZES,
    dtype=st.sampled_from(DTYPES),
    packed=st.sampled_from([None, *TYPES]),
    activation=st.sampled_from(ACTIVATIONS),
    bias_dtype=st.sampled_from(["none", "own", "float32"]),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_linear(
    m: int,
    n: int,
    k: int,
    dtype: np.dtype,
    packed: str | None,
    activation: str | None,
    bias_dtype: str,
    with_residual: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)
    of_bias = {"own": dtype, "float32": FLOAT32}.get(bias_dtype)
    bias = None if of_bias is None else normal(rng, (n,), of_bias)
    residual = normal(rng, (m, n), dtype) if with_residual else None
    what = f"{m}x{n}x{k} {dtype} {packed} {activation}"
    if packed is None:
        result = ax.linear(x, weight, bias, activation=activation, residual=residual)
        exact, bound = expect_linear(x, weight, bias, activation, residual)
    else:
        layer = ax.PackedLinear(weight, packed, bias)
        result = layer(x, activation=activation, residual=residual)
        exact, bound = expect_packed(layer, x, weight, bias, activation, residual)
    assert result.dtype == dtype
    tolerances.assert_within(result, exact, bound, what)


@each_type
@each_dtype
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_packed_of_every_dtype(
    rng: np.random.Generator, packed: str, dtype: np.dtype, weight_dtype: np.dtype
) -> None:
    for m in (1, 5):
        x, weight = normal(rng, (m, 75), dtype), normal(rng, (37, 75), weight_dtype)
        layer = ax.PackedLinear(weight, packed)
        exact, bound = expect_packed(layer, x, weight)
        tolerances.assert_within(layer(x), exact, bound, f"{m} rows")


@each_dtype
@pytest.mark.parametrize("packed", [None, *TYPES])
def test_large(rng: np.random.Generator, dtype: np.dtype, packed: str | None) -> None:
    """Several blocks along every dimension, one of them some thousand wide."""
    wide_size = 700 if EMULATED else 4099
    for m, n, k in ((3, 65, wide_size), (2, wide_size, 67), (530, 35, 66)):
        x, weight = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)
        if packed is None:
            check_matmul(x, weight.T, f"{m}x{n}x{k}")
            check_matmul(x, np.array(weight.T, order="C"), f"{m}x{n}x{k}, row-major")
        else:
            layer = ax.PackedLinear(weight, packed)
            exact, bound = expect_packed(layer, x, weight)
            tolerances.assert_within(layer(x), exact, bound, f"{m}x{n}x{k}")


SPECIAL = {"nan": [np.nan], "inf": [np.inf], "both": [np.inf, -np.inf], "all": [np.nan, -np.inf]}


@each_product
@each_dtype
@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity(
    rng: np.random.Generator, product: Variant, dtype: np.dtype, values: list[float]
) -> None:
    """Rows with one have it in their results, the others do not notice."""
    for rows, cols in ((1, 20), (7, 35)):
        arguments = product.make(rng, rows, cols, dtype)
        name = "a" if "a" in arguments else "x"
        for row in range(0, rows, 3):
            at = rng.choice(cols, len(values), replace=False)
            arguments[name][row, at] = values
        # Away from zero, where infinity times nothing would be NaN in some types and not in others.
        for other in ("b", "weight"):
            if other in arguments:
                x = arguments[other]
                x[np.abs(x) < 0.01] = 1
        product.check(arguments, f"{values} {rows}x{cols}")


@each_dtype
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_int8_rows_with_nan_or_infinity_are_nan(
    rng: np.random.Generator, dtype: np.dtype, special: float
) -> None:
    x, weight = normal(rng, (5, 40), dtype), normal(rng, (9, 40), dtype)
    x[1, 7] = x[4, 39] = special
    weight[3, 0] = special
    y = ax.PackedLinear(weight, "int8")(x).astype(np.float32)
    expected = np.zeros((5, 9), bool)
    expected[[1, 4]] = expected[:, 3] = True
    assert (np.isnan(y) == expected).all()


@pytest.mark.parametrize("products", [FLOAT32, BFLOAT16, FLOAT16], ids=lambda dtype: dtype.name)
def test_subnormals(rng: np.random.Generator, products: np.dtype) -> None:
    """Lost where an instruction flushes them, within the bound, and counted elsewhere."""
    a = normal(rng, (4, 33), products)
    tiny = 2.0**-20 if products == FLOAT16 else 2.0**-130
    b = (normal(rng, (33, 5), FLOAT32) * np.float32(tiny)).astype(products)
    check_matmul(a, b, "subnormal b")


@each_dtype
def test_without_columns_of_x(rng: np.random.Generator, dtype: np.dtype) -> None:
    """A sum of nothing is zero; bias, activation and residual apply all the same."""
    bias, residual = normal(rng, (7,), dtype), normal(rng, (3, 7), dtype)
    x, weight = np.zeros((3, 0), dtype), np.zeros((7, 0), dtype)
    exact, bound = expect_linear(x, weight, bias, "gelu", residual)
    layers: list[Any] = [ax.PackedLinear(weight, packed, bias) for packed in TYPES]
    for result in (
        ax.linear(x, weight, bias, activation="gelu", residual=residual),
        *(layer(x, activation="gelu", residual=residual) for layer in layers),
    ):
        tolerances.assert_within(result, exact, bound, "K = 0")
    assert not ax.matmul(x, weight.T).any()


# ---------------------------------------------------------------- int8


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 40),
    k=st.integers(1, 400),
    dtype=st.sampled_from(DTYPES),
    outlier=st.sampled_from([1.0, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_int8_error_stays_within_its_bound(
    m: int, n: int, k: int, dtype: np.dtype, outlier: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)
    x[:, 0] *= dtype.type(outlier)
    product = wide(x) @ wide(weight).T
    bound = tolerances.quantisation_bound(x, weight)
    bound += tolerances.int8_bound(np.abs(product) + bound)
    tolerances.assert_within(ax.PackedLinear(weight, "int8")(x), product, bound, f"{m}x{n}x{k}")


def test_int8_error_grows_as_estimated(rng: np.random.Generator) -> None:
    """With the square root of K: the RMS error is within 5 % of PackedLinear's estimate."""
    for k in (64, 512, 2048):
        x, weight = normal(rng, (40, k), FLOAT32), normal(rng, (150, k), FLOAT32)
        error = ax.PackedLinear(weight, "int8")(x) - wide(x) @ wide(weight).T
        step_x, step = (np.abs(wide(a)).max(axis=-1) / 127 for a in (x, weight))
        of_weight = np.outer(np.sum(wide(x) ** 2, axis=-1), step**2)
        of_x = np.outer(step_x**2, np.sum(wide(weight) ** 2, axis=-1))
        estimate = np.sqrt(np.mean(of_weight + of_x) / 12)
        # 6000 errors, of which those of a row or column have something in common.
        assert abs(np.sqrt(np.mean(error**2)) / estimate - 1) < 0.05
        relative = estimate / np.sqrt(np.mean((wide(x) @ wide(weight).T) ** 2))
        maxima = [np.abs(a).max(axis=-1).mean() for a in (x, weight)]
        assert abs(relative * 127 / np.sqrt(sum(c * c for c in maxima) / 12) - 1) < 0.1


@each_dtype
def test_int8_is_exact_for_integers(rng: np.random.Generator, dtype: np.dtype) -> None:
    """With 127 as the largest, all scales are 1; the sums stay below what float32 holds."""
    x = rng.integers(-127, 128, (9, 500)).astype(dtype)
    weight = rng.integers(-127, 128, (21, 500)).astype(dtype)
    x[:, 3], weight[:, 499] = dtype.type(127), dtype.type(-127)
    exact = wide(x) @ wide(weight).T
    assert np.abs(exact).max() < 2**24
    result = ax.PackedLinear(weight, "int8")(x)
    assert result.tobytes() == reference._rounded(exact, dtype).tobytes()


def test_int8_sums_do_not_overflow() -> None:
    """At the largest K, with every product the largest."""
    k = 65536
    x, weight = np.full((1, k), 3.0, np.float32), np.full((2, k), -5.0, np.float32)
    weight[1] = 5.0
    y = ax.PackedLinear(weight, "int8")(x)
    assert np.allclose(y, [[-15.0 * k, 15.0 * k]], rtol=1e-6)
