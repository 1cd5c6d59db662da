# SPDX-License-Identifier: Apache-2.0
"""Kernels for LLM inference on Arm Neoverse, for NumPy arrays and torch tensors.

Importing this package imports nothing else: the native module comes with the first operator, and
torch, vLLM and the server with what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capibara_axion._core import __version__
    from capibara_axion.attention import flash_attention, paged_attention
    from capibara_axion.fp8 import fp8_dequantize, fp8_quantize
    from capibara_axion.kv_cache import PagedKVCache
    from capibara_axion.ops import (
        fused_add_rms_norm,
        gelu_and_mul,
        get_num_threads,
        layer_norm,
        linear,
        matmul,
        rms_norm,
        rope,
        set_num_threads,
        silu_and_mul,
        softmax,
    )
    from capibara_axion.packed_linear import PackedLinear

__all__ = [
    "PackedLinear",
    "PagedKVCache",
    "__version__",
    "flash_attention",
    "fp8_dequantize",
    "fp8_quantize",
    "fused_add_rms_norm",
    "gelu_and_mul",
    "get_num_threads",
    "layer_norm",
    "linear",
    "matmul",
    "paged_attention",
    "rms_norm",
    "rope",
    "set_num_threads",
    "silu_and_mul",
    "softmax",
]

# Where names come from that are not in ops.
_ELSEWHERE = {
    "PackedLinear": "capibara_axion.packed_linear",
    "PagedKVCache": "capibara_axion.kv_cache",
    "__version__": "capibara_axion._core",
    "flash_attention": "capibara_axion.attention",
    "fp8_dequantize": "capibara_axion.fp8",
    "fp8_quantize": "capibara_axion.fp8",
    "paged_attention": "capibara_axion.attention",
}


def __getattr__(name: str) -> Any:
    """Loads the operators at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _ELSEWHERE.get(name, "capibara_axion.ops")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
