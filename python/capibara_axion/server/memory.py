# SPDX-License-Identifier: Apache-2.0
"""How large an engine's KV cache is to be."""

from __future__ import annotations

# Sequences share blocks of 128 tokens in every group of layers, and vLLM keeps spare blocks.
_SLACK_TOKENS = 1024
_MIN_BYTES = 32 * 1024 * 1024
_DEFAULT_FULL_LENGTH_SEQUENCES = 4


def kv_cache_bytes(
    *,
    layers: int,
    kv_heads: int,
    head_size: int,
    element_bytes: int,
    max_model_len: int,
    tokens: int | None = None,
) -> int:
    """Bytes of KV cache that hold `tokens`, and never fewer than one sequence of full length.

    Args:
        layers: attention layers of this engine, all counted as if none had a sliding window.
        kv_heads: key-value heads of one layer.
        head_size: elements of one head.
        element_bytes: bytes of one cached element.
        max_model_len: the longest sequence in tokens.
        tokens: capacity wanted; four sequences of full length when None.
    """
    wanted = tokens or _DEFAULT_FULL_LENGTH_SEQUENCES * max_model_len
    per_token = 2 * layers * kv_heads * head_size * element_bytes
    return max(_MIN_BYTES, per_token * (max(wanted, max_model_len) + _SLACK_TOKENS))
