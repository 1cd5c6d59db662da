# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: every vLLM class that rotates by one cos/sin table, and Phi-3's.

The operator works in place on q and k, which are views of the fused qkv projection. vLLM's models
never read them unrotated afterwards: its own CPU kernel works in place, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import capibara_axion.torch_ops  # noqa: F401  (registers torch.ops.capibara_axion)
from capibara_axion.vllm_plugin import compat
from capibara_axion.vllm_plugin.arguments import is_supported

_ops = torch.ops.capibara_axion

Rotated = tuple[torch.Tensor, torch.Tensor | None]


def _is_supported(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None, table: torch.Tensor
) -> bool:
    return (
        positions.dim() == 1
        and query.dim() in (2, 3)
        and is_supported(query)
        and (key is None or (key.dtype == query.dtype and is_supported(key)))
        and table.dtype in (query.dtype, torch.float32)
    )


def _rotate(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    table: torch.Tensor,
    head_size: int,
    neox: bool,
) -> Rotated:
    if torch.compiler.is_compiling():
        # Inductor would copy two views of one tensor, and after the call weave them into a copy of
        # the whole tensor; of clones it knows that nobody else reads them.
        query = query.clone()
        key = None if key is None else key.clone()
    _ops.rope.default(positions, query, key, table, head_size, neox)
    return query, key


def _rotary_embedding(
    layer: Any,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None = None,
) -> Rotated:
    table = layer._match_cos_sin_cache_dtype(query)
    if not _is_supported(positions, query, key, table):
        return layer.forward_stock(positions, query, key)
    return _rotate(positions, query, key, table, layer.head_size, layer.is_neox_style)


def _phi3_long_rope_or(stock: Callable[..., Rotated]) -> Callable[..., Rotated]:
    def forward(
        self: Any,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> Rotated:
        table = self.long_short_cos_sin_cache
        if offsets is not None or not _is_supported(positions, query, key, table):
            return stock(self, positions, query, key, offsets)
        if self.use_long_rope:
            # The rows for the short factors come first.
            table = table[self.original_max_position_embeddings :]
        return _rotate(positions, query, key, table, self.head_size, True)

    return forward


def hook_rotary_embeddings() -> None:
    """Raises: HookNotFound."""
    compat.replace_rotary_embeddings(_rotary_embedding)


def hook_phi3_long_rope() -> None:
    """Raises: HookNotFound."""
    compat.replace_phi3_long_rope(_phi3_long_rope_or)
