# SPDX-License-Identifier: Apache-2.0
"""`quantization="capibara_int4"`: 4-bit weights out of an unquantised checkpoint.

    LLM("Qwen/Qwen2.5-0.5B-Instruct", quantization="capibara_int4")

When the weights are loaded, each group of neighbouring input features of a row is rounded to 16
steps between its smallest and its largest value, and packed; the original is freed. This is plain
rounding: `capibara-axion quantize --method awq` looks at activations first, and its checkpoints
lose less.

The output layer (lm_head) is in 8 bits by default: rounding it to 4 costs more than any other
layer. So are matrices whose columns no group divides.

Settings, as `hf_overrides={"quantization_config_dict_json": '{"group_size": 64}'}` or as
`quantization_config` in the model's config.json:
    group_size: 128 (default), 64 or 32 input features; where it does not divide a matrix's columns,
        the next smaller one that does.
    symmetric: whether all zero points are 8; default false.
    method: "w4a8" (default): activations are rounded to 8 bits a token and group; "w4a16": not.
    lm_head: "int8" (default), "int4", or "none".
    ignore: a list of texts; a layer whose name contains one of them is left alone.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch

from capibara_axion import packed_int4
from capibara_axion.int4 import GROUP_SIZES
from capibara_axion.vllm_plugin import int4, load_time
from capibara_axion.vllm_plugin.linear import CpuLinear, packed_linear

_logger = logging.getLogger(__name__)


class Int4LinearMethod(load_time.LoadTimeLinearMethod):
    """vLLM knows by the class's name how weights are loaded."""


class Int4Config(load_time.LoadTimeConfig):
    """What `quantization="capibara_int4"` stands for: the settings that the module describes."""

    NAME = "capibara_int4"
    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "group_size": (128, 64, 32),
        "symmetric": (False, True),
        "method": ("w4a8", "w4a16"),
        "lm_head": ("int8", "int4", "none"),
    }
    LinearMethod = Int4LinearMethod

    def __init__(
        self,
        group_size: int = 128,
        symmetric: bool = False,
        method: str = "w4a8",
        lm_head: str = "int8",
        ignore: tuple[str, ...] = (),
    ) -> None:
        super().__init__(ignore)
        self.group_size = group_size
        self.symmetric = symmetric
        self.method = method
        self.lm_head = lm_head

    def pack(self, weight: torch.Tensor) -> CpuLinear:
        """Raises: ValueError: it cannot be quantised."""
        group_size = self.group_size_for(weight.shape[1])
        if group_size is None:
            return packed_linear(weight, "int8")
        parts = packed_int4.quantize(weight.detach().contiguous(), group_size, self.symmetric)
        return int4.packed_linear(*parts, self.method)

    def pack_head(self, weight: torch.Tensor) -> CpuLinear:
        """Raises: ValueError: it cannot be quantised."""
        return self.pack(weight) if self.lm_head == "int4" else packed_linear(weight, "int8")

    def quantizes_heads(self) -> bool:
        """Whether output layers are quantised."""
        return self.lm_head != "none"

    def group_size_for(self, k: int) -> int | None:
        """The largest group of at most `group_size` that divides K; None: there is none."""
        fitting = (size for size in GROUP_SIZES if size <= self.group_size and k % size == 0)
        return max(fitting, default=None)


def hook_capibara_int4() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module."""
    int4.check_native_module()
    load_time.hook(Int4Config, _logger)
