# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint in AWQ's format has instead of a matrix, and in its config.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from capibara_axion.int4 import layouts
from capibara_axion.int4.architectures import kept_modules
from capibara_axion.int4.weight import quantize_by_threads


def awq_tensors(
    name: str, matrix: np.ndarray, group_size: int, *, symmetric: bool = False
) -> dict[str, np.ndarray]:
    """The tensors that take the place of the matrix `name`, by name.

    Args:
        name: ends with "weight".
        matrix: f32 `[N, K]`.

    Raises:
        ValueError: as `capibara_axion.int4.quantize` and `pack_awq`; the message names the matrix.
    """
    try:
        weight = quantize_by_threads(matrix, group_size, symmetric=symmetric)
        packed = layouts.pack_awq(weight)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    module = name.removesuffix("weight")
    return {module + part: tensor for part, tensor in packed.items()}


def awq_config(names: Iterable[str], group_size: int) -> dict[str, Any]:
    """`quantization_config` of config.json.

    Args:
        names: of the unquantised checkpoint's tensors.
    """
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        # Symmetric ones have zero points, too: 8. Readers disagree on what they are without.
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept_modules(names),
    }
