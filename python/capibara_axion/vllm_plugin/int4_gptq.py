# SPDX-License-Identifier: Apache-2.0
"""GPTQ checkpoints that vLLM 0.32 refuses: with zero points, or groups in order of activation.

`desc_act` quantises input features in the order of their importance, so that a group's features lie
anywhere; `g_idx` in the file says where. They are brought together when the weight is loaded, and
each call of the layer brings its input into the same order. All other GPTQ checkpoints load as
before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from capibara_axion.int4 import layouts
from capibara_axion.vllm_plugin import compat_int4
from capibara_axion.vllm_plugin.int4 import Int4Kernel, check_native_module

_vllm: Any = compat_int4.int4_classes()

# "checkpoint_format" of the checkpoint's quantization_config.
_VERSIONS = {"gptq": 1, "gptq_v2": 2}


class GptqConfig(_vllm.GptqConfig):
    """As vLLM's class, which sees a plain checkpoint, and remembers what is not plain."""

    def __init__(
        self,
        weight_bits: int,
        group_size: int,
        desc_act: bool,
        is_sym: bool,
        lm_head_quantized: bool,
        dynamic: dict[str, dict[str, int | bool]],
        full_config: dict[str, Any],
        modules_in_block_to_quantize: list[str] | None = None,
    ) -> None:
        self.is_ordered = weight_bits == 4 and desc_act and group_size != -1
        self.has_zeros = weight_bits == 4 and not is_sym
        self.is_ours = self.is_ordered or self.has_zeros
        self.version = 1
        if self.is_ours:
            self.version = _version_of(full_config)
            if dynamic:
                raise ValueError(
                    'GPTQ: "dynamic" rules are not supported together with "desc_act": true or '
                    '"sym": false'
                )
            desc_act, is_sym = False, True
        super().__init__(
            weight_bits,
            group_size,
            desc_act,
            is_sym,
            lm_head_quantized,
            dynamic,
            full_config,
            modules_in_block_to_quantize,
        )

    def get_checkpoint_weight_mapper(self) -> Any:
        """Which tensors of the file are left out: in vLLM's class, g_idx."""
        return _vllm.WeightsMapper() if self.is_ours else super().get_checkpoint_weight_mapper()

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """How this layer computes.

        Raises:
            ValueError: a mixture of experts in such a checkpoint.
        """
        method = super().get_quant_method(layer, prefix)
        if not self.is_ours or method is None:
            return method
        if isinstance(method, _vllm.GptqMethod):
            return GptqMethod(method.quant_config, prefix)
        if hasattr(method, "moe"):
            raise ValueError(
                f'{prefix}: GPTQ with "desc_act": true or "sym": false is not supported in '
                "mixtures of experts"
            )
        return method


class GptqMethod(_vllm.GptqMethod):
    """A linear layer with zero points of its own, or with columns in another order."""

    kernel: Any

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__(config)
        self._prefix = prefix

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Adds `g_idx` to what vLLM's method makes.

        Raises:
            ValueError: such a layer cannot be ours.
        """
        if self.quant_config.is_ordered and input_size != input_size_per_partition:
            raise ValueError(
                f'{self._prefix}: "desc_act": true needs tensor_parallel_size=1, as a group\'s '
                "input features may belong to several ranks"
            )
        super().create_weights(
            layer,
            input_size_per_partition,
            output_partition_sizes,
            input_size,
            output_size,
            params_dtype,
            **attributes,
        )
        if not isinstance(self.kernel, Int4Kernel):
            self.kernel = Int4Kernel(self.kernel.config, "qweight", "scales", "qzeros")
        layer.register_parameter(
            "g_idx",
            _vllm.RowParameter(
                data=torch.full((input_size_per_partition,), -1, dtype=torch.int32),
                input_dim=0,
                weight_loader=self._same_order(attributes["weight_loader"]),
            ),
        )

    def process_weights_after_loading(self, layer: Any) -> None:
        """Packs the weight.

        Raises:
            ValueError: the file's g_idx or qzeros cannot be used; the message says why.
        """
        config = self.quant_config
        try:
            weight, order = layouts.unpack_gptq(
                layer.qweight.data,
                layer.qzeros.data if config.has_zeros else None,
                layer.scales.data,
                layer.g_idx.data if config.is_ordered else None,
                version=config.version,
            )
        except ValueError as error:
            raise ValueError(f"{self._prefix}.{error}") from None
        self.kernel.take(layer, weight, None if order is None else torch.from_numpy(order))
        layer.g_idx = torch.nn.Parameter(layer.g_idx.data.new_empty(0), requires_grad=False)

    def _same_order(self, load: Callable[..., None]) -> Callable[..., None]:
        """`load`, insisting on one order for matrices that become one (q, k and v)."""

        def checked(parameter: Any, loaded: torch.Tensor, *shard: Any) -> None:
            is_first = bool((parameter.data < 0).all())
            if not is_first and not torch.equal(parameter.data, loaded.to(parameter.dtype)):
                raise ValueError(
                    f"{self._prefix}.g_idx: expected one order for all matrices that read the same "
                    "input, got several"
                )
            load(parameter, loaded, *shard)

        return checked


def hook_gptq() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module."""
    check_native_module()
    compat_int4.replace_gptq_config(GptqConfig)


def _version_of(full_config: dict[str, Any]) -> int:
    found = full_config.get("checkpoint_format", "gptq")
    if found not in _VERSIONS:
        known = " or ".join(map(repr, _VERSIONS))
        raise ValueError(f'GPTQ: "checkpoint_format": expected {known}, got {found!r}')
    return _VERSIONS[found]
