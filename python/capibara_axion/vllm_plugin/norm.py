# SPDX-License-Identifier: Apache-2.0
"""RMSNorm and fused add + RMSNorm as providers of vLLM's IR ops; Gemma's layer; Cohere's LayerNorm.

vLLM's layers RMSNorm and GemmaRMSNorm both call the IR ops, Gemma with a float32 weight of 1 + w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import capibara_axion.torch_ops  # noqa: F401  (registers torch.ops.capibara_axion)
from capibara_axion.vllm_plugin import compat
from capibara_axion.vllm_plugin.arguments import is_supported, is_supported_weight

_ops = torch.ops.capibara_axion


def _rms_norm_supports(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return (
        variance_size is None
        and weight is not None
        and weight.dim() == 1
        and is_supported(x)
        and is_supported_weight(weight, x)
    )


def _rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> torch.Tensor:
    output: torch.Tensor = _ops.rms_norm.default(x, weight, epsilon)
    return output


def _fused_add_rms_norm_supports(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return (
        x_residual.dtype == x.dtype
        and is_supported(x_residual)
        and _rms_norm_supports(x, weight, epsilon, variance_size)
    )


def _fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    _ops.fused_add_rms_norm.default(x, x_residual, weight, epsilon)
    return x, x_residual


def _gemma_rms_norm(
    layer: Any, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Adds in place, where the stock layer lets the IR op copy both activations first."""
    if residual is not None:
        weight = layer.weight.float() + 1.0
        if _fused_add_rms_norm_supports(x, residual, weight, layer.variance_epsilon):
            return _fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)
    return layer.forward_stock(x, residual)


def hook_rms_norm() -> None:
    """Raises: HookNotFound."""
    compat.provide_ir_op("rms_norm", _rms_norm, _rms_norm_supports, inplace=False)


def hook_fused_add_rms_norm() -> None:
    """Raises: HookNotFound."""
    compat.provide_ir_op(
        "fused_add_rms_norm", _fused_add_rms_norm, _fused_add_rms_norm_supports, inplace=True
    )


def hook_gemma_rms_norm() -> None:
    """Raises: HookNotFound."""
    compat.replace_gemma_rms_norm(_gemma_rms_norm)


def hook_layer_norm() -> None:
    """Raises: HookNotFound."""
    compat.replace_cohere_layer_norm(_layer_norm_or)


def _layer_norm_or(
    stock: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    def layer_norm(
        hidden_states: torch.Tensor, weight: torch.Tensor, variance_epsilon: float
    ) -> torch.Tensor:
        """LayerNorm over the last dim; weight [H], or [heads, D] for norms on q and k."""
        if is_supported(hidden_states) and is_supported_weight(weight, hidden_states):
            output: torch.Tensor = _ops.layer_norm.default(hidden_states, weight, variance_epsilon)
            return output
        return stock(hidden_states, weight, variance_epsilon)

    return layer_norm
