# SPDX-License-Identifier: Apache-2.0
"""What the plugin knows about vLLM's sampler on the CPU.

Like `compat`, for vLLM 0.32; what is missing or different raises HookNotFound.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from capibara_axion.vllm_plugin.compat import expect_parameters, find


def replace_top_k_top_p(limit_or: Callable[[Any], Any]) -> None:
    """Has the sampler call `limit_or(the stock function)(logits, k, p)`.

    Remove when vLLM's own function for the CPU no longer sorts the vocabulary.

    Raises:
        HookNotFound
    """
    module_name = "vllm.v1.sample.ops.topk_topp_sampler"
    stock = find(module_name, "apply_top_k_top_p")
    expect_parameters(stock, ("logits", "k", "p"))
    module: Any = importlib.import_module(module_name)
    module.apply_top_k_top_p = limit_or(stock)


def replace_penalties(apply: Callable[..., Any]) -> None:
    """Has the sampler call `apply` for the penalties of tokens that occurred.

    Remove when vLLM's own function no longer computes with the whole vocabulary.

    Raises:
        HookNotFound
    """
    module_name = "vllm.v1.sample.ops.penalties"
    expect_parameters(
        find(module_name, "apply_penalties"), tuple(inspect.signature(apply).parameters)
    )
    module: Any = importlib.import_module(module_name)
    module.apply_penalties = apply
