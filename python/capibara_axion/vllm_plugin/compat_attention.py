# SPDX-License-Identifier: Apache-2.0
"""What the plugin knows about vLLM's attention layers on the CPU.

Like `compat`, for vLLM 0.32; what is missing or different raises HookNotFound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from capibara_axion.vllm_plugin.compat import HookNotFound, attribute, expect_parameters, find

_BACKENDS = "vllm.v1.attention.backends"
_CPU = f"{_BACKENDS}.cpu_attn"

# What an attention layer may ask of its backend, beyond what `Wanted` holds, that any backend of
# the CPU gives. All others make it vLLM's own (`_unknown_wish`).
_HARMLESS = frozenset({"has_sink", "use_mm_prefix", "has_sliding_window", "use_batch_invariant"})


class AttentionClasses(NamedTuple):
    """vLLM's classes that a backend is made from."""

    Backend: Any
    Impl: Any
    Builder: Any
    Metadata: Any
    MultipleOf: Any


class Wanted(NamedTuple):
    """What an attention layer wants of its backend.

    Attributes:
        kind: "decoder", "encoder", "encoder_only" or "encoder_decoder".
        kv_cache_dtype: as the user gives it; "auto" for the model's own.
        block_size: tokens of a block; None if the user left it to vLLM.
        other: a wish that only vLLM's own backend can be asked for; or "".
    """

    kind: str
    head_size: int
    dtype: torch.dtype
    kv_cache_dtype: str
    block_size: int | None
    other: str


def attention_classes() -> AttentionClasses:
    """Raises: HookNotFound."""
    base = "vllm.v1.attention.backend"
    classes = AttentionClasses(
        find(_CPU, "CPUAttentionBackend"),
        find(_CPU, "CPUAttentionBackendImpl"),
        find(base, "AttentionMetadataBuilder"),
        find(_CPU, "CPUAttentionMetadata"),
        find(base, "MultipleOf"),
    )
    for name in ("get_supported_kernel_block_sizes", "get_impl_cls", "get_builder_cls"):
        attribute(classes.Backend, name)
    if classes.Backend.forward_includes_kv_cache_update:
        raise HookNotFound("CPUAttentionBackend: expected that the cache is updated before forward")
    layer = ("self", "layer")
    output = ("output", "output_scale", "output_block_scale")
    forward = (*layer, "query", "key", "value", "kv_cache", "attn_metadata", *output)
    update = (*layer, "key", "value", "kv_cache", "slot_mapping")
    expect_parameters(attribute(classes.Impl, "forward"), forward)
    expect_parameters(attribute(classes.Impl, "do_kv_cache_update"), update)
    init = ("self", "kv_cache_spec", "layer_names", "vllm_config", "device")
    build = ("self", "common_prefix_len", "common_attn_metadata", "fast_build")
    expect_parameters(classes.Builder.__init__, init)
    expect_parameters(attribute(classes.Builder, "build"), build)
    common = find(base, "CommonAttentionMetadata")
    for name in ("causal", "mm_req_doc_ranges"):
        attribute(common, name)
    return classes


def replace_attention(backend: str, reason_for_stock: Callable[[Wanted], str]) -> None:
    """Has attention layers on the CPU use a backend, where there is no reason for vLLM's own.

    vLLM asks for each layer's backend when it makes the layer, so a layer's implementation, its
    metadata and the layout of its cache come from one backend.

    Args:
        backend: the class's name with its module's.
        reason_for_stock: why a layer is left to vLLM; "" if it is not.

    Raises:
        HookNotFound
    """
    known = find(f"{_BACKENDS}.registry", "AttentionBackendEnum")
    cpu = attribute(known, "CPU_ATTN")
    if cpu.is_overridden():
        raise HookNotFound(f"CPU_ATTN is already replaced by {cpu.get_path()}")
    expected = {*_HARMLESS, *Wanted._fields} - {"kind", "other"} | {"attn_type"}
    config = find("vllm.v1.attention.selector", "AttentionSelectorConfig")
    if missing := sorted(expected.difference(config._fields)):
        raise HookNotFound(f"AttentionSelectorConfig: expected fields {missing}")
    platform = find("vllm.platforms.cpu", "CpuPlatform")
    stock = attribute(platform, "get_attn_backend_cls")
    expect_parameters(stock, ("selected_backend", "attn_selector_config", "num_heads"))

    def get_attn_backend_cls(
        cls: type, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        path: str = stock.__func__(cls, selected_backend, attn_selector_config, num_heads)
        # Others are latent attention's.
        if path == backend and reason_for_stock(_wanted(attn_selector_config)):
            return str(cpu.value)
        return path

    find(f"{_BACKENDS}.registry", "register_backend")(cpu, backend)
    platform.get_attn_backend_cls = classmethod(get_attn_backend_cls)


def no_compiler_sees_layers() -> bool:
    """Whether the model that is being made will run as it is written (`enforce_eager`)."""
    config = find("vllm.config", "get_current_vllm_config_or_none")()
    none = find("vllm.config", "CompilationMode").NONE
    return config is not None and bool(config.compilation_config.mode == none)


def call_directly(layer: Any) -> None:
    """Has an attention layer call its backend without an operator of torch in between.

    On the CPU vLLM has two of them, in Python, to hide the backend from a compiler. Without a
    compiler they only take time, 20 microseconds a layer and step. On other platforms vLLM goes
    without them itself.
    """
    if hasattr(layer, "use_direct_call"):
        layer.use_direct_call = True


def prefill_images_whole() -> None:
    """Has no image divided between two steps, where its tokens attend to each other.

    Tokens of the first step could not see those of the second. vLLM's platforms for GPUs do the
    same; remove this when its platform for the CPU does.

    Raises:
        HookNotFound
    """
    platform = find("vllm.platforms.cpu", "CpuPlatform")
    stock = attribute(platform, "check_and_update_config")
    expect_parameters(stock, ("vllm_config",))

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        stock.__func__(cls, vllm_config)
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        if model is not None and model.is_mm_prefix_lm and scheduler.is_multimodal_model:
            scheduler.disable_chunked_mm_input = True

    platform.check_and_update_config = classmethod(check_and_update_config)


def _wanted(config: Any) -> Wanted:
    return Wanted(
        kind=str(getattr(config.attn_type, "value", config.attn_type)),
        head_size=config.head_size,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype or "auto",
        block_size=config.block_size,
        other=_unknown_wish(config),
    )


def _unknown_wish(config: Any) -> str:
    """Names of the set flags among a selector's fields, those of later versions included."""
    known = {*Wanted._fields, *_HARMLESS, "attn_type"}
    wishes = [name for name, value in config._asdict().items() if name not in known and value]
    return ", ".join(wishes)
