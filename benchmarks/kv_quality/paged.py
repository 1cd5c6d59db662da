# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model whose attention is ours, over a paged cache in some number format.

transformers calls a registered function instead of its own attention. It stores the keys and values
of the tokens that are fed in the cache, and attends to what the cache holds then: every key and
value that is read has been rounded to the cache's format, those of the token itself included, as
when a server decodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from capibara_axion import PagedKVCache, paged_attention

_ATTENTION = "capibara_axion_paged"
_BLOCK_SIZE = 16
LARGEST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}


@dataclass(frozen=True)
class Format:
    """How a cache holds keys and values.

    Attributes:
        dtype: of the cache.
        scales: "tensor" with 1.0, "head" with calibrated ones, or "token"; of 8-bit floats.
    """

    dtype: str
    scales: str = "tensor"

    @property
    def name(self) -> str:
        if self.dtype not in LARGEST:
            return self.dtype
        how = {"tensor": "1.0", "head": "per head, calibrated", "token": "per token and head"}
        return f"{self.dtype}, {how[self.scales]}"


@dataclass(frozen=True)
class Ranges:
    """The largest magnitudes of keys and values on some text, f32 [layers, KV heads]."""

    keys: torch.Tensor
    values: torch.Tensor


class _Keeper(Protocol):
    """What the registered function hands a layer's q, k and v to."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [B, H, T, D], k and v [B, Hkv, T, D] of the tokens that are fed; gives [B, T, H, D]."""


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    keeper: _Keeper | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None or keeper is None or scaling is None:
        raise ValueError("expected a call by this module, without a mask")
    return keeper.attend(module.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)


class Paged(_Keeper):
    """A `Contender` (evaluate.py) whose keys and values are in paged caches, one a layer."""

    def __init__(self, model: Any, form: Format, ranges: Ranges | None = None) -> None:
        """`model`: in the dtype that attention is to compute in. `ranges`: for scales "head"."""
        self._model, self._format, self._ranges = model, form, ranges
        self._caches: list[PagedKVCache] = []
        self._fed = 0

    def begin(self, sequences: int, length: int) -> None:
        blocks = -(-length // _BLOCK_SIZE)
        # In an order of no order, so that a mistake about blocks would show.
        order = torch.randperm(sequences * blocks, generator=torch.Generator().manual_seed(0))
        self._table = order.view(sequences, blocks).to(torch.int32)
        layers = self._model.config.num_hidden_layers
        self._caches = [self._cache(layer, sequences * blocks) for layer in range(layers)]
        self._fed = 0

    def _cache(self, layer: int, num_blocks: int) -> PagedKVCache:
        config, form = self._model.config, self._format
        options: dict[str, Any] = {}
        if form.dtype in LARGEST:
            options |= {"compute_dtype": str(self._model.dtype).removeprefix("torch.")}
            options |= {"scales": form.scales}
        if form.scales == "head":
            if self._ranges is None:
                raise ValueError("scales per head need ranges")
            largest = LARGEST[form.dtype]
            options["key_scale"] = (self._ranges.keys[layer] / largest).tolist()
            options["value_scale"] = (self._ranges.values[layer] / largest).tolist()
        sizes = num_blocks, _BLOCK_SIZE, config.num_key_value_heads, config.head_dim
        return PagedKVCache(*sizes, dtype=form.dtype, **options)

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        sequences, tokens = ids.shape
        positions = torch.arange(self._fed, self._fed + tokens)
        self._fed += tokens
        blocks = self._table[:, positions // _BLOCK_SIZE].long()
        self._slots = (blocks * _BLOCK_SIZE + positions % _BLOCK_SIZE).flatten()
        self._lengths = torch.full((sequences,), self._fed, dtype=torch.int32)
        self._starts = torch.arange(0, (sequences + 1) * tokens, tokens, dtype=torch.int32)
        self._model.set_attn_implementation(_ATTENTION)
        found = self._model(
            input_ids=ids,
            position_ids=positions.expand(sequences, -1),
            use_cache=False,
            keeper=self,
        )
        return found.logits.float()

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        sequences, _, tokens, _ = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        cache = self._caches[layer]
        cache.append(k, v, self._slots)
        out = paged_attention(
            q, cache, self._table, self._lengths, query_start=self._starts, causal=True, scale=scale
        )
        return out.view(sequences, tokens, *out.shape[1:])


class _Observer(_Keeper):
    """Notes the largest magnitudes, and lets torch attend."""

    def __init__(self, config: Any) -> None:
        shape = config.num_hidden_layers, config.num_key_value_heads
        self.ranges = Ranges(torch.zeros(shape), torch.zeros(shape))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        for largest, x in ((self.ranges.keys, k), (self.ranges.values, v)):
            found = x.float().abs().amax(dim=(0, 2, 3))
            largest[layer] = torch.maximum(largest[layer], found)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)


def calibrate(model: Any, rows: torch.Tensor) -> Ranges:
    """The ranges of keys (after RoPE, as they are stored) and values on texts [n, length]."""
    observer = _Observer(model.config)
    model.set_attn_implementation(_ATTENTION)
    with torch.inference_mode():
        for row in rows:
            model(input_ids=row[None], use_cache=False, keeper=observer)
    return observer.ranges
