# SPDX-License-Identifier: Apache-2.0
"""Which tensors the native operators take; all others stay with vLLM's own implementation.

Only properties that torch.compile knows while tracing are looked at, so that the choice is made
once per graph and never breaks it.
"""

from __future__ import annotations

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_supported(x: torch.Tensor) -> bool:
    """Whether `x` is a CPU tensor of a supported dtype whose rows are contiguous."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and x.stride(-1) == 1


def is_supported_weight(weight: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether `weight` is contiguous, on the CPU, in the dtype of `x` or in float32."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (x.dtype, torch.float32)
        and weight.is_contiguous()
    )
