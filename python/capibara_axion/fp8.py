# SPDX-License-Identifier: Apache-2.0
"""8-bit floats: to and from float32, float16 and bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np

from capibara_axion import _core
from capibara_axion.ops import Array, _torch_ops

# In the order of Fp8 in csrc/base/fp8.h.
_FORMATS = ("e4m3", "e5m2")
_DTYPES = ("float32", "float16", "bfloat16")


def _format_number(format: str) -> int:
    try:
        return _FORMATS.index(format)
    except ValueError:
        raise ValueError(f"format: expected 'e4m3' or 'e5m2', got {format!r}") from None


def positive_scale(name: str, scale: Any) -> float:
    """A scale that float32 holds, as its inverse."""
    try:
        number = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(scale).__name__}") from None
    # Subnormal numbers' inverses overflow.
    if not 2.0**-126 <= number <= 2.0**126:
        raise ValueError(f"{name}: expected a number from 2^-126 to 2^126, got {scale}")
    return number


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of a name; bfloat16 needs the package ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    from capibara_axion.packed_linear import _numpy_bfloat16

    return _numpy_bfloat16()


def known_dtype(dtype: str, known: tuple[str, ...] = _DTYPES, name: str = "dtype") -> str:
    """`dtype`, which is to be one of `known`."""
    if not isinstance(dtype, str):
        raise TypeError(f"{name}: expected a string, got {type(dtype).__name__}")
    if dtype not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {dtype!r}")
    return dtype


def fp8_quantize(x: Array, format: str = "e4m3", scale: float = 1.0) -> Array:
    """x / scale in 8 bits: `fp8_dequantize` with the same scale gives about x.

    P. Micikevicius et al., "FP8 Formats for Deep Learning" (2022, arXiv:2209.05433): e4m3 as its
    variant without infinities (float8_e4m3fn of ml_dtypes and torch), largest value 448; e5m2 with
    infinities, largest finite value 57344.

    x is multiplied with the inverse of `scale` in float32 and rounded to nearest, ties to even.
    What is larger than the largest finite value becomes it, infinities too; NaN stays NaN. (The
    types of ml_dtypes and torch make NaN or infinity of such values.)

    Args:
        x: any shape, float32, float16 or bfloat16.
        format: "e4m3" or "e5m2".
        scale: from 2^-126 to 2^126.

    Returns:
        The codes, uint8 of x's shape.

    Raises:
        TypeError: x is no array or tensor, or of another dtype; scale is no number.
        ValueError: another format, or a scale out of range.
    """
    number = _format_number(format)
    factor = 1.0 if scale == 1.0 else float(1 / np.float32(positive_scale("scale", scale)))
    if (ops := _torch_ops(x)) is None:
        codes = np.empty(np.shape(x), np.uint8)
        _core.fp8_encode(x, number, factor, codes)
        return codes  # type: ignore[return-value]
    import torch

    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    ops.fp8_encode(x, number, factor, codes)
    return codes


def fp8_dequantize(
    codes: Array, format: str = "e4m3", scale: float = 1.0, dtype: str = "float32"
) -> Array:
    """The numbers that 8-bit codes stand for, times `scale`.

    Every code is a number of each dtype, so that without a scale the result is exact. With one, it
    is the float32 product, rounded to `dtype`.

    Args:
        codes: any shape, uint8, as `fp8_quantize` gives them.
        format: "e4m3" or "e5m2".
        scale: from 2^-126 to 2^126.
        dtype: of the result: "float32", "float16" or "bfloat16".

    Returns:
        The numbers, of codes' shape.

    Raises:
        TypeError: codes are no array or tensor, or of another dtype; scale is no number.
        ValueError: another format or dtype, or a scale out of range.
        ImportError: bfloat16 in NumPy without the package ml_dtypes.
    """
    number = _format_number(format)
    dtype = known_dtype(dtype)
    factor = positive_scale("scale", scale)
    decoded = dtype if factor == 1.0 else "float32"
    if (ops := _torch_ops(codes)) is None:
        array = np.empty(np.shape(codes), numpy_dtype(decoded))
        _core.fp8_decode(codes, number, array)
        if factor == 1.0:
            return array  # type: ignore[return-value]
        with np.errstate(over="ignore", invalid="ignore"):
            array *= np.float32(factor)
            return array.astype(numpy_dtype(dtype), copy=False)  # type: ignore[return-value]
    import torch

    out = torch.empty(codes.shape, dtype=getattr(torch, decoded), device=codes.device)
    ops.fp8_decode(codes, number, out)
    return out if factor == 1.0 else out.mul_(factor).to(getattr(torch, dtype))
