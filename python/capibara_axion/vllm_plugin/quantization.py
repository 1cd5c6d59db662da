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

import json
import logging
from typing import Any

import torch

from capibara_axion.vllm_plugin import compat_linear
from capibara_axion.vllm_plugin.linear import (
    Later,
    check_native_module,
    free_weight,
    packed_linear,
)

NAME = "capibara_int8"

_vllm: Any = compat_linear.quantization_classes()

_logger = logging.getLogger(__name__)


def quantize(layer: Any, name: str, *, free: bool) -> None:
    """Has `layer.cpu_linear` multiply by the weight as int8.

    Args:
        free: the weight is not needed any more.

    Raises:
        ValueError: the weight cannot be quantised.
    """
    try:
        layer.cpu_linear = packed_linear(layer.weight, "int8")
    except ValueError as error:
        raise ValueError(
            f"{NAME} cannot quantise {name or 'a layer'} {tuple(layer.weight.shape)}: {error}. "
            'Leave it out with the setting "ignore".'
        ) from error
    if free:
        free_weight(layer)


class Int8LinearMethod(_vllm.LinearMethod):
    """Linear layers, merged and sharded ones included: a scale belongs to one row of the weight.

    It is no subclass of UnquantizedLinearMethod, by which vLLM would know that it may read
    `layer.weight`.
    """

    create_weights = _vllm.UnquantizedLinearMethod.create_weights

    def process_weights_after_loading(self, layer: Any) -> None:
        """Quantises and frees the weight."""
        if compat_linear.is_left_unpacked(layer):
            layer.cpu_linear = torch.nn.functional.linear
        else:
            quantize(layer, getattr(layer, "prefix", ""), free=True)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x @ weight.T + bias."""
        output: torch.Tensor = layer.cpu_linear(x, layer.weight, bias)
        return output


class Int8HeadMethod(_vllm.UnquantizedEmbeddingMethod):
    """Output layers, and embeddings in case that the model uses one as such.

    A tied output layer has a reference to the embedding's weight, and only gives that up.
    """

    def process_weights_after_loading(self, layer: Any) -> None:
        """Quantises the weight, and frees it if it is not for looking up."""
        name = getattr(layer, "prefix", "")
        if compat_linear.is_lookup(layer):
            layer.cpu_linear = Later(layer, lambda: quantize(layer, name, free=False))
        else:
            quantize(layer, name, free=True)


class Int8Config(_vllm.Config):
    """What `quantization="capibara_int8"` stands for.

    Args:
        lm_head: whether the output layer is quantised.
        ignore: parts of the names of layers that are left alone.
    """

    def __init__(self, lm_head: bool = True, ignore: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.lm_head = lm_head
        self.ignore = ignore

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lm_head={self.lm_head}, ignore={self.ignore})"

    def get_name(self) -> str:
        """The name by which users ask for it."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The dtypes that the operator takes."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of GPUs; does not apply."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: checkpoints are unquantised."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Int8Config:
        """From `quantization_config` of a checkpoint's config.json.

        Raises:
            ValueError: a setting is unknown or of the wrong type.
        """
        settings = {name: value for name, value in config.items() if name != "quant_method"}
        lm_head, ignore = settings.pop("lm_head", True), settings.pop("ignore", [])
        if not isinstance(lm_head, bool):
            raise ValueError(f"{NAME}: lm_head: expected true or false, got {lm_head!r}")
        if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
            raise ValueError(f"{NAME}: ignore: expected a list of texts, got {ignore!r}")
        if settings:
            raise ValueError(f"{NAME}: unknown settings: {', '.join(sorted(settings))}")
        return cls(lm_head, tuple(ignore))

    @classmethod
    def from_config_dict_json(cls, config: str) -> Int8Config:
        """From `quantization_config_dict_json` of `hf_overrides`."""
        return cls.from_config(json.loads(config))

    def takes_head(self, prefix: str) -> bool:
        """Whether an output layer of this name is quantised."""
        ignored = any(part in prefix for part in self.ignore)
        return self.lm_head and not ignored and not compat_linear.has_head_of_other_dtype()

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """How this layer computes; None: as it would anyhow.

        Raises:
            ValueError: a mixture of experts.
        """
        ignored = any(part in prefix for part in self.ignore)
        if isinstance(layer, _vllm.Linear):
            return _vllm.UnquantizedLinearMethod() if ignored else Int8LinearMethod()
        if isinstance(layer, _vllm.Embedding):
            return Int8HeadMethod() if self.takes_head(prefix) else None
        if compat_linear.is_experts(layer) and not ignored:
            raise ValueError(
                f"{NAME} does not quantise mixtures of experts ({prefix}). Leave them out with the "
                'setting "ignore", or choose another quantization.'
            )
        return None


def hook_int8() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module."""
    check_native_module()
    compat_linear.register_quantization(NAME, Int8Config, Int8LinearMethod)
    compat_linear.around_load_model("int8", lambda: None, _end_load)


def _end_load(loaded: compat_linear.Loaded) -> None:
    config = loaded.quantization
    if not isinstance(config, Int8Config):
        return
    for layer in loaded.embeddings_that_are_heads():
        # Cohere's model does not ask how to quantise its embedding.
        if config.takes_head(layer.prefix):
            layer.quant_method = Int8HeadMethod()
            quantize(layer, layer.prefix, free=False)
    names = [
        name
        for name, layer in loaded.model.named_modules()
        if isinstance(getattr(layer, "quant_method", None), Int8LinearMethod)
    ]
    loaded.add_to_compile_key(" ".join(names))
    compat_linear.log_info(_logger, f"{NAME}: {len(names)} linear layers quantised")
