# SPDX-License-Identifier: Apache-2.0
"""A tiny Mistral with AWQ matrices through our operators, beside float64 and the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import capibara_axion as ax
from capibara_axion import int4, reference, reference_attention

TOKENS, LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 24, 2, 128, 4, 2, 32, 256, 96
GROUP_SIZE = 32

Linear = Callable[[np.ndarray], np.ndarray]


def _awq_matrices(random: np.random.Generator) -> list[dict[str, dict[str, np.ndarray]]]:
    """By layer and name, as a checkpoint in AWQ's format has them."""
    shapes = {
        "qkv": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
        "o": (HIDDEN, HEADS * HEAD_DIM),
        "gate_up": (2 * INNER, HIDDEN),
        "down": (HIDDEN, INNER),
    }

    def matrix(rows: int, columns: int) -> dict[str, np.ndarray]:
        weight = random.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        return int4.pack_awq(int4.quantize(weight, GROUP_SIZE))

    return [{name: matrix(*shape) for name, shape in shapes.items()} for _ in range(LAYERS)]


def _angles() -> np.ndarray:
    steps = np.arange(TOKENS)[:, None] * 10000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return np.concatenate([np.cos(steps), np.sin(steps)], axis=1).astype(np.float32)


def _logits(
    x: np.ndarray, layers: list[dict[str, Linear]], head: np.ndarray, ops: Any, attention: Any
) -> np.ndarray:
    """The model; `ops` are our operators or their references."""
    norm = np.ones(HIDDEN, x.dtype)
    widths = np.cumsum([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
    for linears in layers:
        qkv = linears["qkv"](ops.rms_norm(x, norm))
        q, k, v = (part.reshape(TOKENS, -1, HEAD_DIM) for part in np.split(qkv, widths, axis=1))
        q, k = _turned(ops, np.ascontiguousarray(q), np.ascontiguousarray(k))
        mixed = attention(q[None], k[None], np.ascontiguousarray(v)[None])[0]
        x = x + linears["o"](mixed.reshape(TOKENS, -1))
        x = x + linears["down"](ops.silu_and_mul(linears["gate_up"](ops.rms_norm(x, norm))))
    return ops.matmul(ops.rms_norm(x, norm), head)


def _turned(ops: Any, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """References return what operators do in place."""
    return ops.rope(q, k, _angles(), np.arange(TOKENS)) or (q, k)


@pytest.mark.parametrize(
    ("method", "step"), [("w4a16", 1 / 16286), ("w4a8", 1 / 127)], ids=["w4a16", "w4a8"]
)
def test_a_tiny_mistral(method: str, step: float) -> None:
    """Only activations are rounded: by half a step of their group's largest, or less.

    The largest of 32 is some 2.2 standard deviations, and rounding is uniform: 2.2 step / sqrt(12)
    a product, eight of them one after the other.
    """
    random = np.random.default_rng(1)
    packed = _awq_matrices(random)
    x = random.standard_normal((TOKENS, HIDDEN), np.float32)
    head = random.standard_normal((HIDDEN, VOCABULARY), np.float32)
    ours: list[dict[str, Linear]] = []
    exact: list[dict[str, Linear]] = []
    for matrices in packed:
        ours.append({})
        exact.append({})
        for name, tensors in matrices.items():
            weight = int4.unpack_awq(**tensors)
            values = weight.dequantize().astype(np.float64).T
            ours[-1][name] = ax.PackedLinear.from_int4(
                weight.codes, weight.scales, weight.zeros, method=method
            )
            exact[-1][name] = lambda rows, values=values: rows @ values
    found = _logits(x, ours, head, ax, ax.flash_attention)
    wide = [array.astype(np.float64) for array in (x, head)]
    expected = _logits(wide[0], exact, wide[1], reference, reference_attention.flash_attention)
    error = float(np.sqrt(np.square(found - expected).mean()))
    limit = 2.2 * step / math.sqrt(12) * math.sqrt(4 * LAYERS) * float(expected.std())
    print(f"{method}: RMS {error:.2e}, expected up to {limit:.2e}")
    assert limit / 30 < error <= limit
