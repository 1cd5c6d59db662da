# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged KV cache, in vLLM's place: `--kv-cache-dtype auto` and the FP8 ones.

The layout inside a block is ours (csrc/kernels/kv_cache/kv_cache.h); vLLM only moves whole blocks.
So a layer is ours from its cache to its result, or vLLM's: `reason_for_stock` decides that when
the layer is made, and says in one warning why it is not ours.

What differs from vLLM's own backend for the CPU: an FP8 cache works on every CPU and with all head
sizes, and the tokens of an image see each other where the model has it so (Gemma 3).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

import capibara_axion.torch_ops  # noqa: F401  (registers torch.ops.capibara_axion)
from capibara_axion import _core
from capibara_axion.attention import paged_attention
from capibara_axion.kv_cache import PagedKVCache
from capibara_axion.vllm_plugin import compat_attention
from capibara_axion.vllm_plugin.compat_attention import Wanted

_UNIT = 16  # head sizes and block sizes are multiples of it
_LARGEST_HEAD = 512

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_FP8 = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}

_vllm: Any = compat_attention.attention_classes()

_logger = logging.getLogger(__name__)
_warned: set[str] = set()


def reason_for_stock(wanted: Wanted) -> str:
    """Why a layer is left to vLLM's own backend, which the first of its kind warns of; or ""."""
    reason = _reason_for_stock(wanted)
    if reason and reason not in _warned:
        _warned.add(reason)
        _logger.warning("capibara_axion in vLLM: attention is left to vLLM for %s", reason)
    return reason


def _reason_for_stock(wanted: Wanted) -> str:
    dtype = _DTYPES.get(wanted.dtype)
    if wanted.kind != "decoder":
        return f"{wanted.kind.replace('_', '-')} layers"
    if dtype is None:
        return f"{wanted.dtype}"
    if wanted.head_size % _UNIT or wanted.head_size > _LARGEST_HEAD:
        return f"heads of {wanted.head_size} elements"
    if wanted.kv_cache_dtype not in ("auto", dtype, *_FP8):
        return f"a KV cache of {wanted.kv_cache_dtype} in a model of {dtype}"
    if wanted.block_size is not None and wanted.block_size % _UNIT:
        return f"blocks of {wanted.block_size} tokens"
    return f"layers that ask for {wanted.other}" if wanted.other else ""


@dataclass
class AttentionMetadata(_vllm.Metadata):
    """What vLLM's own backend is told of a step, and:

    Attributes:
        ranges: int32 [n, 3], (sequence, begin, end) of tokens that see each other; or None.
    """

    ranges: torch.Tensor | None = None


class AttentionBuilder(_vllm.Builder):
    """Makes the metadata of a step for layers with the same kind of cache."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        # vLLM declares it abstract.
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> AttentionMetadata:
        """What vLLM knows of this step's sequences, for the layers' `forward`."""
        common = common_attn_metadata
        if isinstance(common.causal, torch.Tensor):
            # Layers that need it ask for `use_non_causal`, and are vLLM's.
            raise NotImplementedError(
                "capibara_axion: attention with a causal mask for some of the sequences; "
                "CAPIBARA_AXION_DISABLE=attention leaves it to vLLM"
            )
        return AttentionMetadata(
            # vLLM's own number may count rows of padding.
            num_actual_tokens=int(common.query_start_loc[-1]),
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            causal=common.causal,
            ranges=_ranges(common),
        )


def _ranges(common: Any) -> torch.Tensor | None:
    """The images, as far as they are cached, that this step has queries in."""
    if not common.mm_req_doc_ranges:
        return None
    starts, lengths = common.query_start_loc.tolist(), common.seq_lens.tolist()
    ranges = []
    for sequence, images in sorted(common.mm_req_doc_ranges.items()):
        length = lengths[sequence]
        first_query = length - (starts[sequence + 1] - starts[sequence])
        for begin, last in sorted(images):
            end = min(last + 1, length)
            if begin < end and first_query < end:
                ranges.append((sequence, begin, end))
    return torch.tensor(ranges, dtype=torch.int32) if ranges else None


class AttentionImpl(_vllm.Impl):
    """Attention of one layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window = self.sliding_window if self.sliding_window > 0 else None
        self._cache: PagedKVCache | None = None
        self._cache_of: tuple[Any, ...] = ()
        self._sinks: torch.Tensor | None = None
        self._call_directly = compat_attention.no_compiler_sees_layers()

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Takes the sinks, which are parameters of the model, as float32."""
        super().process_weights_after_loading(act_dtype)
        if self.sinks is not None:
            self._sinks = self.sinks.detach().to(torch.float32).contiguous()

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Stores keys and values [tokens, KV heads, head size] where `slot_mapping` says."""
        slots, tokens = slot_mapping.shape[0], key.shape[0]
        if slots < tokens:  # the longer one is padded
            key, value = key[:slots], value[:slots]
        elif slots > tokens:
            slot_mapping = slot_mapping[:tokens]
        self._paged(layer, kv_cache, key.dtype).append(key, value, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: AttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends queries [tokens, heads, head size] to the cache, which holds their keys."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("capibara_axion: attention does not quantise its result")
        if attn_metadata is None:  # a warm-up, which has no cache
            return output
        if self._call_directly:
            self._call_directly = False
            compat_attention.call_directly(layer)
        tokens, out = attn_metadata.num_actual_tokens, output
        if tokens != query.shape[0]:  # padded; a slice takes a microsecond
            query, out = query[:tokens], output[:tokens]
        paged_attention(
            query,
            self._paged(layer, kv_cache, query.dtype),
            attn_metadata.block_table,
            attn_metadata.seq_lens,
            query_start=attn_metadata.query_start_loc,
            causal=attn_metadata.causal,
            window=self._window_if(attn_metadata.causal),
            softcap=self.logits_soft_cap,
            scale=self.scale,
            alibi_slopes=self.alibi_slopes,
            sinks=self._sinks,
            ranges=self._ranges_of(layer, attn_metadata.ranges),
            out=out,
        )
        return output

    def _paged(self, layer: Any, kv_cache: torch.Tensor, dtype: torch.dtype) -> PagedKVCache:
        """The layer's cache as ours; vLLM's tensor stays the same from step to step."""
        of = (kv_cache, layer._k_scale_float, layer._v_scale_float)
        if self._cache is None or of[0] is not self._cache_of[0] or of[1:] != self._cache_of[1:]:
            self._cache = PagedKVCache.over(
                kv_cache,
                dtype=_FP8.get(self.kv_cache_dtype, _DTYPES[dtype]),
                compute_dtype=_DTYPES[dtype],
                key_scale=of[1],
                value_scale=of[2],
            )
            self._cache_of = of
        return self._cache

    def _window_if(self, causal: bool) -> int | tuple[int, int] | None:
        """As vLLM means it: to both sides, where queries see what follows them."""
        if self._window is None or causal:
            return self._window
        return self._window - 1, self._window - 1

    def _ranges_of(self, layer: Any, ranges: torch.Tensor | None) -> torch.Tensor | None:
        """Those that hold in this layer.

        An image longer than the window, in a layer that clamps it to the window (Gemma 4), is
        attended causally.
        """
        if ranges is None or self._window is None:
            return ranges
        if not getattr(layer, "mm_prefix_clamp_sliding_window", False):
            return ranges
        return ranges[ranges[:, 2] - ranges[:, 1] <= self._window]


class AttentionBackend(_vllm.Backend):
    """vLLM's backend for the CPU, with our attention and cache."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Tokens that a block may have."""
        return [_vllm.MultipleOf(_UNIT)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Elements that a head may have."""
        return [*range(_UNIT, _LARGEST_HEAD + 1, _UNIT)]

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Whether the tokens of an image see each other."""
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        """Whether a head may have one more logit in its softmax."""
        return True

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """What a layer calls."""
        return AttentionImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionBuilder]:
        """What tells layers about a step."""
        return AttentionBuilder


def check_native_module() -> None:
    """Raises: RuntimeError: it is older than this file, as a checkout's that was not rebuilt is."""
    if "attention" not in _core.call_counts():
        raise RuntimeError("the native module has no attention yet: install the project again")


def hook_attention() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module."""
    check_native_module()
    name = f"{AttentionBackend.__module__}.{AttentionBackend.__qualname__}"
    compat_attention.replace_attention(name, reason_for_stock)


def hook_whole_images() -> None:
    """Raises: HookNotFound."""
    compat_attention.prefill_images_whole()
