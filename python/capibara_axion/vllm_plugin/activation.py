# SPDX-License-Identifier: Apache-2.0
"""SwiGLU and GeGLU: vLLM's layers SiluAndMul and GeluAndMul."""

from __future__ import annotations

from typing import Any

import torch

import capibara_axion.torch_ops  # noqa: F401  (registers torch.ops.capibara_axion)
from capibara_axion.vllm_plugin import compat
from capibara_axion.vllm_plugin.arguments import is_supported

_ops = torch.ops.capibara_axion


def _silu_and_mul(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if not is_supported(x):
        return layer.forward_stock(x)
    return _ops.silu_and_mul.default(x, None)


def _gelu_and_mul(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if not is_supported(x):
        return layer.forward_stock(x)
    if layer.approximate == "tanh":
        return _ops.gelu_tanh_and_mul.default(x, None)
    return _ops.gelu_and_mul.default(x, None)


def hook_silu_and_mul() -> None:
    """Raises: HookNotFound."""
    compat.replace_activation("SiluAndMul", _silu_and_mul)


def hook_gelu_and_mul() -> None:
    """Raises: HookNotFound."""
    compat.replace_activation("GeluAndMul", _gelu_and_mul)
