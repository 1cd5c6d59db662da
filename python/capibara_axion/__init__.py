# SPDX-License-Identifier: Apache-2.0
"""Kernels for LLM inference on Arm Neoverse, for NumPy arrays and torch tensors.

Importing this package imports NumPy and the native module, nothing else: torch, vLLM and the
server are loaded by what needs them.
"""

from __future__ import annotations

from capibara_axion._core import __version__
from capibara_axion.ops import (
    fused_add_rms_norm,
    gelu_and_mul,
    get_num_threads,
    layer_norm,
    rms_norm,
    rope,
    set_num_threads,
    silu_and_mul,
    softmax,
)

__all__ = [
    "__version__",
    "fused_add_rms_norm",
    "gelu_and_mul",
    "get_num_threads",
    "layer_norm",
    "rms_norm",
    "rope",
    "set_num_threads",
    "silu_and_mul",
    "softmax",
]
