# SPDX-License-Identifier: Apache-2.0
"""What the plugin knows about vLLM's linear layers, model loader and quantisation.

Like `compat`, for vLLM 0.32; what is missing or different raises HookNotFound.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from capibara_axion.vllm_plugin.compat import (
    LAYERS,
    PROVIDER,
    HookNotFound,
    attribute,
    expect_parameters,
    find,
)

_EMBEDDING = f"{LAYERS}.vocab_parallel_embedding"

Dispatch = Callable[[Any, bool], None]


def replace_linear_dispatch(
    dispatch_or: Callable[[Dispatch], Dispatch],
) -> None:
    """Replaces the function that prepares a layer's weight by `dispatch_or(the stock one)`.

    It is called as `dispatch(layer, remove_weight)` once the weight is loaded, and sets
    `layer.cpu_linear(x, weight, bias)`. Remove when vLLM lets a plugin add a linear backend for
    the CPU, as `--linear-backend` does for others.

    Raises:
        HookNotFound
    """
    name = "dispatch_cpu_unquantized_gemm"
    stock = find(f"{LAYERS}.utils", name)
    expect_parameters(stock, ("layer", "remove_weight"))
    caller = find(f"{LAYERS}.utils", "cpu_unquantized_gemm")
    expect_parameters(caller, ("layer", "x", "weight", "bias"))
    if "cpu_linear" not in caller.__code__.co_names:
        raise HookNotFound("cpu_unquantized_gemm: expected that it calls layer.cpu_linear")
    dispatch = dispatch_or(stock)
    # vLLM 0.32 imports it where it is called, from this module; other places may have kept it.
    for module in [*sys.modules.values()]:
        if getattr(module, "__name__", "").startswith("vllm.") and vars(module).get(name) is stock:
            setattr(module, name, dispatch)


class Loaded:
    """A model whose weights have just been loaded.

    Attributes:
        model: vLLM's module.
        quantization: vLLM's object for it, or None.
    """

    def __init__(self, model: Any, vllm_config: Any, key: str) -> None:
        self.model = model
        self.quantization = vllm_config.quant_config
        self._vllm_config = vllm_config
        self._key = key

    def add_to_compile_key(self, text: str) -> None:
        """Keeps vLLM from taking up a graph that was compiled under another text.

        Its cache knows the configuration and the source files, but no choice made at load time.
        """
        if isinstance(self._vllm_config.additional_config, dict):
            self._vllm_config.additional_config[self._key] = text

    def embeddings_that_are_heads(self) -> list[Any]:
        """The embeddings by which a model without an output layer multiplies (Cohere's)."""
        head = find(_EMBEDDING, "ParallelLMHead")
        modules = list(self.model.modules())
        if not hasattr(self.model, "compute_logits") or any(isinstance(m, head) for m in modules):
            return []
        return [module for module in modules if is_lookup(module)]


def around_load_model(name: str, begin: Callable[[], None], end: Callable[[Loaded], None]) -> None:
    """Has `begin()` called before a model is loaded, and `end(loaded)` after.

    Args:
        name: of the caller, who may add to the key of compiled graphs.

    Raises:
        HookNotFound
    """
    loader = find("vllm.model_executor.model_loader.base_loader", "BaseModelLoader")
    stock = attribute(loader, "load_model")
    expect_parameters(stock, ("self", "vllm_config", "model_config", "prefix"))

    def load_model(self: Any, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        begin()
        model = stock(self, vllm_config, model_config, prefix)
        end(Loaded(model, vllm_config, f"{PROVIDER}.{name}.{prefix}"))
        return model

    loader.load_model = load_model


def is_lookup(layer: Any) -> bool:
    """Whether `layer` is an embedding, by which most models never multiply."""
    embedding, head = find(_EMBEDDING, "VocabParallelEmbedding"), find(_EMBEDDING, "ParallelLMHead")
    return isinstance(layer, embedding) and not isinstance(layer, head)


class QuantizationClasses(NamedTuple):
    """vLLM's classes that a quantisation of its own is made from, and what its layers are."""

    Config: Any
    LinearMethod: Any
    UnquantizedLinearMethod: Any
    UnquantizedEmbeddingMethod: Any
    Linear: Any
    Embedding: Any


def quantization_classes() -> QuantizationClasses:
    """Raises: HookNotFound."""
    classes = QuantizationClasses(
        find(f"{LAYERS}.quantization.base_config", "QuantizationConfig"),
        find(f"{LAYERS}.linear", "LinearMethodBase"),
        find(f"{LAYERS}.linear", "UnquantizedLinearMethod"),
        find(_EMBEDDING, "UnquantizedEmbeddingMethod"),
        find(f"{LAYERS}.linear", "LinearBase"),
        find(_EMBEDDING, "VocabParallelEmbedding"),
    )
    expect_parameters(attribute(classes.Config, "get_quant_method"), ("self", "layer", "prefix"))
    for method in (classes.LinearMethod, classes.UnquantizedEmbeddingMethod):
        expect_parameters(attribute(method, "apply"), ("self", "layer", "x", "bias"))
        expect_parameters(attribute(method, "process_weights_after_loading"), ("self", "layer"))
    return classes


def register_quantization(name: str, config: type, linear_method: type) -> None:
    """Makes `quantization=name` known to vLLM.

    Args:
        linear_method: its method of linear layers, whose weights load as unquantised ones do.

    Raises:
        HookNotFound
    """
    find(f"{LAYERS}.linear", "register_weight_loader_v2_supported_method")(linear_method)
    find(f"{LAYERS}.quantization", "register_quantization_config")(name)(config)


def is_experts(layer: Any) -> bool:
    """Whether `layer` holds the weights of a mixture of experts."""
    return isinstance(layer, find(f"{LAYERS}.fused_moe", "RoutedExperts"))


def is_left_unpacked(layer: Any) -> bool:
    """Whether vLLM reads this linear layer's weight later (latent attention's kv_b_proj)."""
    return bool(getattr(layer, "_cpu_skip_gemm_dispatch", False))


def has_head_of_other_dtype() -> bool:
    """Whether the model of this moment has logits of another dtype than its own (`head_dtype`).

    vLLM then multiplies by `lm_head.weight` itself.
    """
    model = find("vllm.config", "get_current_vllm_config")().model_config
    return model is not None and bool(model.head_dtype != model.dtype)


def log_info(logger: logging.Logger, message: str) -> None:
    """Logs to `logger` if that shows it, else among vLLM's own messages."""
    if not logger.isEnabledFor(logging.INFO):
        logger = logging.getLogger("vllm.plugins.capibara_axion")
    logger.info("%s", message, stacklevel=2)
