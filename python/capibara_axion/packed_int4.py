# SPDX-License-Identifier: Apache-2.0
"""4-bit weights on their way into and out of packed memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from capibara_axion import _core

# How a method has activations: in so many integers of 8 bits each.
METHODS = {"w4a8": 1, "w4a16": 2}
DEFAULT_METHOD = "w4a8"
DEFAULT_GROUP = 128

Int4Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def digits_of(method: str | None) -> int:
    """The native module's number of a method."""
    name = DEFAULT_METHOD if method is None else method
    if not isinstance(name, str):
        raise TypeError(f"method: expected a string, got {type(name).__name__}")
    if name not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method: expected one of {known}, got {name!r}")
    return METHODS[name]


def quantize(weight: Any, group_size: int, symmetric: bool) -> Int4Parts:
    """Codes, scales and zero points of a matrix of floats, an array or a tensor."""
    n, k = weight.shape if weight.ndim == 2 else (0, 0)
    groups = k // max(group_size, 1)
    parts = (
        np.empty((n, k), np.uint8),
        np.empty((n, groups), np.float32),
        np.empty((n, groups), np.uint8),
    )
    if isinstance(weight, np.ndarray):
        _core.quantize_int4(weight, group_size, symmetric, *parts)
    else:
        import torch

        tensors = map(torch.from_numpy, parts)
        torch.ops.capibara_axion.quantize_int4(weight.detach(), group_size, symmetric, *tensors)
    return parts


def pack(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, digits: int
) -> np.ndarray:
    """Packed memory with this weight in it."""
    groups = scales.shape[1] if scales.ndim == 2 else 0
    group_size = codes.shape[-1] // groups if groups else DEFAULT_GROUP
    n, k = codes.shape if codes.ndim == 2 else (0, 0)
    packed = _core.aligned_empty(_core.packed_int4_nbytes(n, k, group_size))
    _core.pack_int4(codes, scales, zeros, digits, packed)
    return packed


def as_uint8(values: Any, name: str) -> np.ndarray:
    """A contiguous array of a uint8 array or tensor."""
    array = _as_array(values, name)
    if array.dtype != np.uint8:
        raise TypeError(f"{name}: expected uint8, got {array.dtype}")
    return np.ascontiguousarray(array)


def as_float32(values: Any, name: str) -> np.ndarray:
    """A contiguous array in float32, which holds float16 and bfloat16 exactly."""
    if is_tensor(values):
        if not values.is_floating_point():
            raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {values.dtype}")
        values = values.detach().float()
    array = _as_array(values, name)
    if array.dtype.name not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {array.dtype}")
    return np.ascontiguousarray(array, np.float32)


def is_tensor(values: Any) -> bool:
    """Whether this is a torch tensor. Never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def _as_array(values: Any, name: str) -> np.ndarray:
    if is_tensor(values):
        if values.device.type != "cpu":
            raise ValueError(f"{name}: expected a tensor on the CPU, got one on {values.device}")
        array: np.ndarray = values.detach().numpy()
        return array
    if not isinstance(values, np.ndarray):
        given = type(values).__name__
        raise TypeError(f"{name}: expected a NumPy array or a torch tensor, got {given}")
    return values


def halves(codes: np.ndarray) -> np.ndarray:
    """Two codes to a byte, the first in its lower half; an odd last one alone."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << 4


def codes_of(bytes_: np.ndarray, columns: int) -> np.ndarray:
    """What `halves` made bytes of."""
    both = np.stack([bytes_ & 15, bytes_ >> 4], axis=2)
    return np.ascontiguousarray(both.reshape(len(bytes_), -1)[:, :columns])
