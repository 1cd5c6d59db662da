# SPDX-License-Identifier: Apache-2.0
"""PackedLinear of 4-bit weights: values against the reference, the weight itself, its files, its
errors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import BFLOAT16, DTYPES, FLOAT32, Array, normal, wide
from products import ACTIVATIONS, EMULATED

import capibara_axion as ax
from capibara_axion import _core, reference

METHODS = ("w4a8", "w4a16")
# Columns and group, which may be all of them.
GROUPS = ((32, 32), (96, 32), (192, 64), (256, 128), (75, 75), (300, 300))

each_method = pytest.mark.parametrize("method", METHODS)


def make(rng: Any, n: int, k: int, group: int) -> tuple[Array, Array, Array]:
    """(codes, scales, zeros)"""
    return (
        rng.integers(0, 16, (n, k), dtype=np.uint8),
        np.abs(normal(rng, (n, k // group), FLOAT32)) / 8,
        rng.integers(0, 17, (n, k // group), dtype=np.uint8),
    )


def values_of(codes: Array, scales: Array, zeros: Array | None) -> Array:
    group = codes.shape[1] // scales.shape[1]
    offsets = np.full(scales.shape, 8) if zeros is None else zeros
    return (codes - np.repeat(offsets, group, 1).astype(float)) * np.repeat(wide(scales), group, 1)


def rounding_bound(x: Array, values: Array, method: str) -> Array:
    """Of the operator beside the reference: in each group the product of scales and the
    multiply-add round, and the two parts of a 16-bit integer are added."""
    terms = -(-x.shape[-1] // 32) + 2
    wide_x = np.abs(wide(x))
    with np.errstate(invalid="ignore"):
        magnitude = (wide_x + wide_x.max(axis=-1, keepdims=True, initial=0) / 127) @ np.abs(
            values
        ).T
    return tolerances.FIRST_ORDER * terms * tolerances.U * 2 * magnitude + tolerances.TINY


def quantisation_bound(x: Array, values: Array, method: str, group: int) -> Array:
    """As PackedLinear's docstring has it: half a step for each element."""
    _, steps = reference.quantized_groups(wide(x).astype(np.float32), group, method)
    return (0.5 + 2.0**-14) * steps @ np.abs(values).T


@settings(max_examples=10 if EMULATED else 60, deadline=None)
@given(
    m=st.integers(0, 20),
    n=st.integers(0, 70),
    columns=st.sampled_from(GROUPS),
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(METHODS),
    activation=st.sampled_from(ACTIVATIONS),
    with_zeros=st.booleans(),
    with_more=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any(
    m: int,
    n: int,
    columns: tuple[int, int],
    dtype: np.dtype,
    method: str,
    activation: str | None,
    with_zeros: bool,
    with_more: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    k, group = columns
    codes, scales, zeros = make(rng, n, k, group)
    given_zeros = zeros if with_zeros else None
    x = normal(rng, (m, k), dtype)
    bias = normal(rng, (n,), FLOAT32) if with_more else None
    residual = normal(rng, (m, n), dtype) if with_more else None
    layer = ax.PackedLinear.from_int4(codes, scales, given_zeros, bias=bias, method=method)
    result = layer(x, activation=activation, residual=residual)
    assert result.dtype == dtype
    weight = (codes, scales, given_zeros)
    product = reference.linear_int4(wide(x), *weight, method=method)
    exact = reference.linear_int4(
        wide(x), *weight, bias, method=method, activation=activation, residual=residual
    )
    values = values_of(*weight)
    bound = rounding_bound(x, values, method)
    tolerances.assert_within(
        result,
        exact,
        tolerances.linear_bound(product, bound, dtype, bias, activation, residual),
        f"{m}x{n}x{k} {method}",
    )
    plain = ax.PackedLinear.from_int4(*weight, method=method)(x)
    tile_group = group if group in (32, 64) else 128
    tolerances.assert_within(
        plain,
        wide(x) @ values.T,
        bound + quantisation_bound(x, values, method, tile_group),
        f"{m}x{n}x{k} {method}, of what x was",
    )


@each_method
def test_bfloat16_is_nearly_exact_with_16_bits(rng: np.random.Generator, method: str) -> None:
    """Down to 1/64 of the group's largest: all of these."""
    codes, scales, zeros = make(rng, 9, 256, 128)
    signs = rng.choice([-1.0, 1.0], (5, 256))
    x = (signs * rng.uniform(1 / 32, 1, (5, 256))).astype(BFLOAT16)
    integers, steps = reference.quantized_groups(wide(x), 128, method)
    assert (integers * steps == wide(x)).all() == (method == "w4a16")
    layer = ax.PackedLinear.from_int4(codes, scales, zeros, method=method)
    values = values_of(codes, scales, zeros)
    bound = rounding_bound(x, values, method)
    if method == "w4a8":
        bound += quantisation_bound(x, values, method, 128)
    tolerances.assert_within(layer(x), wide(x) @ values.T, bound, method)


def test_a_token_is_the_same_alone_and_among_others(rng: np.random.Generator) -> None:
    weight, x = normal(rng, (70, 384), FLOAT32), normal(rng, (40, 384), BFLOAT16)
    for method in METHODS:
        layer = ax.PackedLinear(weight, "int4", method=method)
        together = layer(x)
        alone = np.concatenate([layer(x[i : i + 1]) for i in range(40)])
        assert (together.view(np.uint16) == alone.view(np.uint16)).all()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@each_method
def test_nan_and_infinity(rng: np.random.Generator, method: str, special: float) -> None:
    x, weight = normal(rng, (5, 96), FLOAT32), normal(rng, (9, 96), FLOAT32)
    x[1, 7] = x[4, 95] = special
    weight[3, 0] = special
    y = ax.PackedLinear(weight, "int4", group_size=32, method=method)(x)
    expected = np.zeros((5, 9), bool)
    expected[[1, 4]] = expected[:, 3] = True
    assert (np.isnan(y) == expected).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_floats_are_rounded_to_nearest(
    rng: np.random.Generator, dtype: np.dtype, symmetric: bool
) -> None:
    for k, group in GROUPS:
        weight = normal(rng, (7, k), dtype)
        weight[0] = 0
        layer = ax.PackedLinear(weight, "int4", group_size=group, symmetric=symmetric)
        codes, scales, zeros = layer.unpack_int4()
        assert (layer.group_size, layer.method, layer.dtype) == (group, "w4a8", "int4")
        assert scales.shape == zeros.shape == (7, k // group)
        assert zeros.max() <= 15
        assert not symmetric or (zeros == 8).all()
        error = np.abs(values_of(codes, scales, zeros) - wide(weight))
        assert (error <= 0.50001 * np.repeat(scales, group, 1)).all()


def test_errors_of_gaussian_values(rng: np.random.Generator) -> None:
    """What the docstring says of them."""
    weight, x = normal(rng, (128, 1024), FLOAT32), normal(rng, (32, 1024), FLOAT32)
    exact = wide(x) @ wide(weight).T

    def error(of: Array, beside: Array) -> float:
        return float(np.sqrt(((of - beside) ** 2).mean() / (beside**2).mean()))

    layers = {method: ax.PackedLinear(weight, "int4", method=method) for method in METHODS}
    rounded = wide(x) @ values_of(*layers["w4a8"].unpack_int4()).T
    assert 0.09 < error(rounded, exact) < 0.115
    assert 0.006 < error(layers["w4a8"](x), rounded) < 0.0078
    assert error(layers["w4a16"](x), rounded) < 5e-5


# ---------------------------------------------------------------- the weight itself


def parts_equal(layer: ax.PackedLinear, parts: tuple[Any, ...]) -> bool:
    return all((np.asarray(a) == b).all() for a, b in zip(layer.unpack_int4(), parts, strict=True))


@each_method
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_comes_back(
    rng: np.random.Generator, tmp_path: Path, method: str, with_bias: bool
) -> None:
    pytest.importorskip("safetensors", reason="the package that writes and reads the files")
    for n, (k, group) in zip((1, 37, 64, 8, 5, 2), GROUPS, strict=True):
        parts = make(rng, n, k, group)
        bias = normal(rng, (n,), FLOAT32) if with_bias else None
        x = normal(rng, (3, k), FLOAT32)
        layer = ax.PackedLinear.from_int4(*parts, bias=bias, method=method)
        layer.save(tmp_path / "layer.safetensors")
        for other in (
            layer,
            copy.copy(layer),
            pickle.loads(pickle.dumps(layer)),
            ax.PackedLinear.load(tmp_path / "layer.safetensors"),
        ):
            assert repr(other) == repr(layer)
            assert other.nbytes == layer.nbytes
            assert parts_equal(other, parts)
            assert (other(x) == layer(x)).all()


def test_attributes(rng: np.random.Generator) -> None:
    layer = ax.PackedLinear(normal(rng, (256, 4096), FLOAT32), "int4", symmetric=True)
    assert repr(layer) == (
        "PackedLinear(in_features=4096, out_features=256, dtype='int4', group_size=128, "
        "method='w4a8', bias=False)"
    )
    assert layer.nbytes == _core.packed_int4_nbytes(256, 4096, 128)
    assert layer.nbytes * 8 / (256 * 4096) < 4.38  # 4, and 48 for each group
    with pytest.raises(TypeError, match="see unpack_int4"):
        layer.unpack()
    with pytest.raises(TypeError, match="expected a layer of int4, got one of f32"):
        ax.PackedLinear(np.ones((2, 3), np.float32)).unpack_int4()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_scales_of_every_dtype(rng: np.random.Generator, dtype: np.dtype) -> None:
    codes, scales, _ = make(rng, 5, 64, 32)
    layer = ax.PackedLinear.from_int4(codes, scales.astype(dtype))
    assert parts_equal(layer, (codes, scales.astype(dtype).astype(np.float32), np.full((5, 2), 8)))


CODES, SCALES, ZEROS = (
    np.zeros((4, 64), np.uint8),
    np.ones((4, 2), np.float32),
    np.ones((4, 2), np.uint8),
)
WEIGHT = np.ones((4, 64), np.float32)


@pytest.mark.parametrize(
    ("make_layer", "error", "message"),
    [
        (lambda: ax.PackedLinear(WEIGHT, "int4"), ValueError, "group_size: expected 32, 64 or 128"),
        (
            lambda: ax.PackedLinear(WEIGHT, "int4", group_size=48),
            ValueError,
            "group_size: expected 32, 64 or 128 that divides the number of columns, 64, or all of",
        ),
        (lambda: ax.PackedLinear(WEIGHT, "int4", group_size=0), ValueError, "group_size: .* got 0"),
        (lambda: ax.PackedLinear(WEIGHT[0], "int4"), ValueError, "weight: expected shape"),
        (
            lambda: ax.PackedLinear(WEIGHT.astype(float), "int4", group_size=32),
            TypeError,
            "weight: expected float32, float16 or bfloat16",
        ),
        (
            lambda: ax.PackedLinear(WEIGHT, "int4", group_size=32, method="w8a8"),
            ValueError,
            "method: expected one of 'w4a8', 'w4a16', got 'w8a8'",
        ),
        (
            lambda: ax.PackedLinear.from_int4([1], SCALES),
            TypeError,
            "codes: expected a NumPy array",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES.astype(np.int8), SCALES),
            TypeError,
            "codes: expected uint8, got int8",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES + 16, SCALES),
            ValueError,
            "codes: expected numbers from 0 to 15, got 16",
        ),
        (lambda: ax.PackedLinear.from_int4(CODES[0], SCALES), ValueError, "codes: expected shape"),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES[:3]),
            ValueError,
            r"scales: expected shape \[4, 64 / group_size\], got \[3, 2\]",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, np.ones((4, 4), np.float32)),
            ValueError,
            "group_size: .* got 16",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES.astype(float)),
            TypeError,
            "scales: expected float32, float16 or bfloat16, got float64",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES, ZEROS[:, :1]),
            ValueError,
            r"zeros: expected shape \[4, 2\], got \[4, 1\]",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES, ZEROS + 16),
            ValueError,
            "zeros: expected numbers from 0 to 16, got 17",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES, bias=np.ones(3, np.float32)),
            ValueError,
            r"bias: expected shape \[4\], got \[3\]",
        ),
        (
            lambda: ax.PackedLinear.from_int4(CODES, SCALES)(np.ones((2, 32), np.float32)),
            ValueError,
            "x: expected a last dimension of 64",
        ),
        (
            lambda: _core.unpack_linear(ax.PackedLinear.from_int4(CODES, SCALES)._packed),
            ValueError,
            "packed: expected weights of another type, got int4",
        ),
        (
            lambda: _core.unpack_int4(ax.PackedLinear(WEIGHT)._packed),
            ValueError,
            "packed: expected weights of 4 bits, got others",
        ),
        (
            lambda: _core.pack_int4(CODES, SCALES, None, 3, _core.aligned_empty(64)),
            ValueError,
            "digits: expected 1 or 2, got 3",
        ),
        (
            lambda: _core.pack_int4(CODES, SCALES, None, 1, _core.aligned_empty(64)),
            ValueError,
            "packed: expected .* bytes, got 64",
        ),
    ],
)
def test_errors(make_layer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_layer()
