# SPDX-License-Identifier: Apache-2.0
"""A weight in 4-bit integers, and how to get one out of floats."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

GROUP_SIZES = (32, 64, 128)
MIDDLE = 8  # the zero point of a symmetric weight

# Below, float16 rounds a scale to zero.
_SMALLEST_SCALE = np.float16(2.0**-24)
_PIECE_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Int4Weight:
    """`value = (code - zero) * scale`, with one scale and one zero for each group of a row.

    A group is `group_size` neighbours along K, the input features.

    Attributes:
        codes: uint8 `[N, K]`, 0 to 15.
        scales: floats `[N, K / group_size]`, an array or a tensor.
        zeros: uint8 `[N, K / group_size]`, 0 to 16; None: 8 everywhere.
    """

    codes: np.ndarray
    scales: Any
    zeros: np.ndarray | None = None

    @property
    def group_size(self) -> int:
        """Neighbours along K that share a scale."""
        return self.codes.shape[1] // int(self.scales.shape[1])

    def dequantize(self) -> np.ndarray:
        """The values in float32 `[N, K]`; scales must be an array that NumPy can convert."""
        n, k = self.codes.shape
        groups = self.codes.reshape(n, -1, self.group_size).astype(np.float32)
        groups -= np.float32(MIDDLE) if self.zeros is None else self.zeros[:, :, None]
        groups *= np.asarray(self.scales, np.float32)[:, :, None]
        return groups.reshape(n, k)


def quantize(weight: np.ndarray, group_size: int, *, symmetric: bool = False) -> Int4Weight:
    """Rounds every value to the nearest of its group's 16 steps.

    The steps span the group's smallest to its largest value, and always hold zero. Scales are
    rounded to bfloat16 before the codes are chosen, and stored as float16: exact in both, so that
    a model has the same weights in either.

    Args:
        weight: float32 `[N, K]`, finite.
        group_size: 32, 64, 128 or K.
        symmetric: zero points are 8; the steps span -8 to 7 fifteenths of twice the largest
            absolute value.

    Returns:
        codes, scales in float16, and zeros unless `symmetric`.

    Raises:
        ValueError: the group size is another one or does not divide K; a value is not finite or
            too large for a float16 scale.
    """
    n, k = weight.shape
    check_group_size(group_size, k)
    groups = np.asarray(weight, np.float32).reshape(n, k // group_size, group_size)
    if symmetric:
        span = 2 * np.abs(groups).max(axis=2)
        low = None
    else:
        low = np.minimum(groups.min(axis=2), 0)
        span = np.maximum(groups.max(axis=2), 0) - low
    with np.errstate(over="ignore", invalid="ignore"):
        scales = _eight_bits(span / np.float32(15)).astype(np.float16)
    scales = np.maximum(scales, _SMALLEST_SCALE)
    if not np.isfinite(scales).all():
        raise ValueError("weight: expected finite values up to some 400000, got others")
    wide = scales.astype(np.float32)
    if low is None:
        zeros = None
        codes = np.rint(groups / wide[:, :, None]) + MIDDLE
    else:
        zeros = np.clip(np.rint(-low / wide), 0, 15)
        codes = np.rint(groups / wide[:, :, None]) + zeros[:, :, None]
        zeros = zeros.astype(np.uint8)
    codes = np.clip(codes, 0, 15).astype(np.uint8)
    return Int4Weight(codes.reshape(n, k), scales, zeros)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Rounded to as many significant bits as bfloat16 has."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(fraction * 256) / 256, exponent)


def check_group_size(group_size: int, k: int) -> None:
    """Raises: ValueError: groups of this size are unknown, or do not divide K."""
    if group_size not in (*GROUP_SIZES, k):
        known = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"group_size: expected {known} or all {k} columns, got {group_size}")
    if k % group_size:
        raise ValueError(f"group_size: expected a divisor of {k} columns, got {group_size}")


def quantize_by_threads(weight: np.ndarray, group_size: int, *, symmetric: bool) -> Int4Weight:
    """`quantize`, its rows in pieces that stay in a core's cache, on all cores."""
    rows = max(1, _PIECE_ELEMENTS // max(1, weight.shape[1]))
    pieces = [weight[first : first + rows] for first in range(0, len(weight), rows)]

    def one(piece: np.ndarray) -> Int4Weight:
        return quantize(piece, group_size, symmetric=symmetric)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(one, pieces))
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Int4Weight(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        None if symmetric else np.concatenate(zeros),
    )
