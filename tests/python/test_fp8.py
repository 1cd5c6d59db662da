# SPDX-License-Identifier: Apache-2.0
"""8-bit floats against ml_dtypes, over all codes and all 16-bit values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from operators import BFLOAT16, DTYPES, FLOAT16, FLOAT32, normal

import capibara_axion as ax
from capibara_axion import reference

CODES = np.arange(256, dtype=np.uint8)
OTHERS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
each_format = pytest.mark.parametrize("format", OTHERS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same numbers, signs of zeros included, NaN where the other has it."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return bool((((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))).all())


@each_format
@each_dtype
def test_every_code(format: str, dtype: np.dtype) -> None:
    given = ax.fp8_dequantize(CODES, format, dtype=dtype.name)
    assert given.dtype == dtype
    assert same(given, CODES.view(OTHERS[format]))
    assert same(given, reference.fp8_dequantize(CODES, format))
    # There and back, but for infinities, which saturate, and other NaN.
    back = ax.fp8_quantize(given, format)
    finite = np.isfinite(given.astype(np.float32))
    assert (back[finite] == CODES[finite]).all()
    nan = np.isnan(given.astype(np.float32))
    assert np.isnan(ax.fp8_dequantize(back[nan], format)).all()


def expect_codes(x: np.ndarray, format: str) -> np.ndarray:
    """By ml_dtypes, of what it does not make NaN or infinity."""
    limit = np.float32(LARGEST[format])
    with np.errstate(invalid="ignore"):
        return np.clip(x.astype(np.float32), -limit, limit).astype(OTHERS[format])


@each_format
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=lambda dtype: dtype.name)
def test_every_16_bit_value(format: str, dtype: np.dtype) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    codes = ax.fp8_quantize(x, format)
    assert codes.dtype == np.uint8
    assert same(codes.view(OTHERS[format]), expect_codes(x, format))
    assert np.array_equal(np.signbit(x.astype(np.float32)), codes >= 128)
    assert same(codes.view(OTHERS[format]), reference.fp8_quantize(x, format).view(OTHERS[format]))


@each_format
def test_float32_around_ties(format: str) -> None:
    """All codes, the numbers half-way between them, and their neighbours."""
    numbers = np.unique(CODES.view(OTHERS[format]).astype(np.float32))
    numbers = numbers[np.isfinite(numbers)]
    ties = (numbers[1:] + numbers[:-1]) / 2
    x = np.concatenate([numbers, ties])
    x = np.concatenate(
        [x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, -np.float32(np.inf))]
    )
    assert same(ax.fp8_quantize(x, format).view(OTHERS[format]), expect_codes(x, format))


@each_format
def test_saturation(format: str) -> None:
    limit = LARGEST[format]
    x = np.array([limit * 1.01, -1e38, np.inf, -np.inf, np.nan], np.float32)
    given = ax.fp8_dequantize(ax.fp8_quantize(x, format), format)
    assert given[:4].tolist() == [limit, -limit, limit, -limit]
    assert np.isnan(given[4])


@each_format
@each_dtype
@pytest.mark.parametrize("scale", [1.0, 0.037, 300.0, 2.0**-100])
def test_scales(rng: np.random.Generator, format: str, dtype: np.dtype, scale: float) -> None:
    x = normal(rng, (7, 50), dtype)
    codes = ax.fp8_quantize(x, format, scale)
    assert (codes == reference.fp8_quantize(x, format, scale)).all()
    numbers = ax.fp8_dequantize(codes, format).astype(np.float32)
    for to in DTYPES:
        given = ax.fp8_dequantize(codes, format, scale, to.name)
        with np.errstate(over="ignore"):
            assert same(given, (numbers * np.float32(scale)).astype(to))


@each_format
def test_every_size_and_layout(rng: np.random.Generator, format: str) -> None:
    x = normal(rng, (100_000,), FLOAT32)
    codes = ax.fp8_quantize(x, format)
    for size in (*range(70), 4095, 4097, 99_999):
        assert (ax.fp8_quantize(x[:size], format) == codes[:size]).all()
        given = ax.fp8_dequantize(codes[:size], format, dtype="float16")
        assert same(given, codes[:size].view(OTHERS[format]))
    strided = x.reshape(250, 400)[::3, ::7]
    assert (ax.fp8_quantize(strided, format) == codes.reshape(250, 400)[::3, ::7]).all()
    given = ax.fp8_dequantize(codes.reshape(250, 400).T, format)
    assert same(given, codes.view(OTHERS[format]).reshape(250, 400).T)
    assert ax.fp8_quantize(x[:1].reshape(()), format).shape == ()
    try:
        for threads in (1, 2, 5):
            ax.set_num_threads(threads)
            assert (ax.fp8_quantize(np.tile(x, 4), format) == np.tile(codes, 4)).all()
    finally:
        ax.set_num_threads(0)


X = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: ax.fp8_quantize([1.0]), TypeError, "x: expected a NumPy array or a torch tensor"),
        (lambda: ax.fp8_quantize(X.astype(float)), TypeError, "x: expected float32, "),
        (lambda: ax.fp8_quantize(CODES), TypeError, "x: expected float32, .* got uint8"),
        (lambda: ax.fp8_quantize(X, "e3m4"), ValueError, "format: expected 'e4m3' or 'e5m2', got"),
        (lambda: ax.fp8_quantize(X, scale=0.0), ValueError, "scale: expected a number from"),
        (lambda: ax.fp8_quantize(X, scale=-1.0), ValueError, "scale: expected a number from"),
        (lambda: ax.fp8_quantize(X, scale=np.nan), ValueError, "scale: expected a number from"),
        (lambda: ax.fp8_quantize(X, scale="two"), TypeError, "scale: expected a number, got str"),
        (lambda: ax.fp8_dequantize(X), TypeError, "codes: expected uint8, got float32"),
        (lambda: ax.fp8_dequantize([1]), TypeError, "codes: expected a NumPy array"),
        (lambda: ax.fp8_dequantize(CODES, "fp8"), ValueError, "format: expected"),
        (lambda: ax.fp8_dequantize(CODES, scale=np.inf), ValueError, "scale: expected"),
        (lambda: ax.fp8_dequantize(CODES, dtype="float64"), ValueError, "dtype: expected one of"),
        (lambda: ax.fp8_dequantize(CODES, dtype=FLOAT32), TypeError, "dtype: expected a string"),
    ],
)
def test_errors(call: Callable[[], Any], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=f"^{message}"):
        call()
