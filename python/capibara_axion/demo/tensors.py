# SPDX-License-Identifier: Apache-2.0
"""Deterministic tensors and the safetensors file format, in bfloat16."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Draws:
    """Random tensors from one seed.

    RandomState is used because NumPy freezes its streams: the same seed gives the same bytes in
    every NumPy release.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def uniform(self, *shape: int, std: float, mean: float = 0.0) -> Array:
        """Uniform values with the given mean and standard deviation, float32."""
        half_width = std * 3.0**0.5
        return (mean + self._state.uniform(-half_width, half_width, shape)).astype(np.float32)

    def linear(self, out_features: int, in_features: int, *, gain: float = 1.0) -> Array:
        """A projection [out, in] that maps inputs of unit variance to variance gain^2."""
        return self.uniform(out_features, in_features, std=gain * in_features**-0.5)


def to_bfloat16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """Finite float32 values as bfloat16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Writes `tensors` as bfloat16 in the safetensors format."""
    payload = {name: to_bfloat16_bits(tensors[name]).astype("<u2") for name in sorted(tensors)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in payload.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for array in payload.values():
            file.write(array.tobytes())
