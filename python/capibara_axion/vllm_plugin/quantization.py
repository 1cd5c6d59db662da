# SPDX-License-Identifier: Apache-2.0
"""`quantization="capibara_int8"`: 8-bit weights and activations out of an unquantised checkpoint.

    LLM("Qwen/Qwen2.5-0.5B-Instruct", quantization="capibara_int8")

When the weights are loaded, each row of a weight (an output channel) is scaled so that its largest
element is 127, rounded, and packed; the original is freed. Each row of the activations (a token) is
quantised the same way at every call, inside the operator. Sums are exact in int32.

The output layer (lm_head) is quantised, too: of a small model it is the largest matrix, and one
that every token reads whole. The embedding's table stays as it is, for looking up; a model that
ties both has its table and the int8 copy.

Settings, as `hf_overrides={"quantization_config_dict_json": '{"lm_head": false}'}` or as
`quantization_config` in the model's config.json:
    lm_head: whether the output layer is quantised; default true.
    ignore: a list of texts; a layer whose name contains one of them is left alone.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch

from capibara_axion.vllm_plugin import load_time
from capibara_axion.vllm_plugin.linear import CpuLinear, check_native_module, packed_linear

_logger = logging.getLogger(__name__)


class Int8LinearMethod(load_time.LoadTimeLinearMethod):
    """vLLM knows by the class's name how weights are loaded."""


class Int8Config(load_time.LoadTimeConfig):
    """What `quantization="capibara_int8"` stands for.

    Args:
        lm_head: whether the output layer is quantised.
        ignore: parts of the names of layers that are left alone.
    """

    NAME = "capibara_int8"
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {"lm_head": (True, False)}
    LinearMethod = Int8LinearMethod

    def __init__(self, lm_head: bool = True, ignore: tuple[str, ...] = ()) -> None:
        super().__init__(ignore)
        self.lm_head = lm_head

    def pack(self, weight: torch.Tensor) -> CpuLinear:
        """Raises: ValueError: it cannot be quantised."""
        return packed_linear(weight, "int8")

    def pack_head(self, weight: torch.Tensor) -> CpuLinear:
        """Raises: ValueError: it cannot be quantised."""
        return self.pack(weight)

    def quantizes_heads(self) -> bool:
        """Whether output layers are quantised."""
        return self.lm_head


def hook_int8() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module."""
    check_native_module()
    load_time.hook(Int8Config, _logger)
