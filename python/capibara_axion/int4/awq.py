# SPDX-License-Identifier: Apache-2.0
"""Activation-aware scales: J. Lin et al., "AWQ", 2023, arXiv:2306.00978.

A group's steps are as wide as its largest weight demands, and rounding hurts most where inputs are
large. So columns that read large inputs are multiplied by s > 1 before rounding and their inputs
divided by it, which makes their rounding error s times smaller as long as the group's largest
weight is another one. With m_k the mean |x_k| over a calibration text,

    s_k = m_k^a / sqrt(max m^a min m^a),        a = 0, 0.05 ... 0.95,

and the a is taken whose outputs are nearest to the exact ones; a = 0 is plain rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capibara_axion.int4.architectures import Fold
from capibara_axion.int4.weight import quantize_by_threads

_STEPS = 20
_SMALLEST_MEAN = 1e-4


@dataclass(frozen=True)
class Inputs:
    """What the readers of a fold were given.

    Attributes:
        rows: some tokens' inputs, f32 `[tokens, K]`.
        means: of |x| over all tokens, f32 `[K]`.
    """

    rows: torch.Tensor
    means: np.ndarray


def find_scales(
    fold: Fold, weights: Sequence[torch.Tensor], inputs: Inputs, group_size: int, symmetric: bool
) -> np.ndarray:
    """The scale of each channel that the writer writes, f32.

    Args:
        weights: of the readers, f32 `[N, K]`.
    """
    means = np.maximum(written(fold, inputs.means), _SMALLEST_MEAN)
    exact = [inputs.rows @ weight.T for weight in weights]
    powers = [max(float(output.square().sum()), 1e-30) for output in exact]
    best, lowest = np.ones_like(means), np.inf
    for step in range(_STEPS):
        scales = means ** np.float32(step / _STEPS)
        scales /= np.sqrt(scales.max() * scales.min())
        columns = read(fold, scales)
        error = 0.0
        for weight, output, power in zip(weights, exact, powers, strict=True):
            scaled = weight.numpy() * columns
            rounded = quantize_by_threads(scaled, group_size, symmetric=symmetric)
            off = inputs.rows @ torch.from_numpy(rounded.dequantize() / columns).T - output
            error += float(off.square().sum()) / power
        if error < lowest:
            best, lowest = scales, error
    return best


def read(fold: Fold, scales: np.ndarray) -> np.ndarray:
    """A value of each written channel as the readers' columns have it."""
    blocks = scales.reshape(-1, fold.block)
    return np.repeat(blocks, fold.repeats, axis=0).reshape(-1)


def written(fold: Fold, columns: np.ndarray) -> np.ndarray:
    """The inverse of `read`, where blocks that share a written one are averaged."""
    return columns.reshape(-1, fold.repeats, fold.block).mean(axis=1).reshape(-1)
