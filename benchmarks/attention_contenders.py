# SPDX-License-Identifier: Apache-2.0
"""Attention and what writes its cache: ours, over a paged cache and over keys and values as they
come (`dense`), and torch's, which has no paged cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import capibara_axion.torch_ops  # noqa: F401  registers the operators
from capibara_axion import PagedKVCache, flash_attention, paged_attention
from cases import BLOCK, HEAD_DIM, Inputs
from contenders import APPEND, ATTENTION, Call, contender
from ours import array

_sdpa = torch.nn.functional.scaled_dot_product_attention


def _tensor(x: torch.Tensor) -> Any:
    return x


def _cache(a: Inputs) -> PagedKVCache:
    return PagedKVCache(a.step.blocks, BLOCK, a.case.kv_heads, HEAD_DIM, a.case.cache_dtype)


def _paged(a: Inputs, of: Callable[[torch.Tensor], Any], cache: PagedKVCache) -> Call:
    """As vLLM calls it; `of` makes tensors what the operator takes."""
    q, result, step = of(a.q), torch.empty_like(a.q), a.step
    out, table, lengths = of(result), of(step.block_table), of(step.seq_lens)
    start = of(step.query_start)
    return lambda: (
        paged_attention(q, cache, table, lengths, query_start=start, out=out),
        result,
    )[1]


def _paged_filled(a: Inputs, of: Callable[[torch.Tensor], Any]) -> Call:
    cache = _cache(a)
    cache.append(of(a.key), of(a.value), of(a.step.slots))
    return _paged(a, of, cache)


@contender(ATTENTION, "ours", "paged out")
def _paged_tensors(a: Inputs) -> Call:
    return _paged_filled(a, _tensor)


@contender(ATTENTION, "ours", "NumPy paged out")
def _paged_arrays(a: Inputs) -> Call:
    return _paged_filled(a, array)


def _dense(a: Inputs, of: Callable[[torch.Tensor], Any]) -> Call:
    result = torch.empty_like(a.q)
    q, k, v, out = (of(x.unsqueeze(0)) for x in (a.q, a.key, a.value, result))
    return lambda: (flash_attention(q, k, v, out=out), result)[1]


@contender("attention", "ours", "dense out")
def _dense_tensors(a: Inputs) -> Call:
    return _dense(a, _tensor)


@contender("attention", "ours", "NumPy dense out")
def _dense_arrays(a: Inputs) -> Call:
    return _dense(a, array)


@contender("attention", "torch", "SDPA enable_gqa")
def _sdpa_enable_gqa(a: Inputs) -> Call:
    """Of keys and values as they come. torch's "causal" lets the first query see the first key
    alone: what decodes must not ask for it."""
    q, k, v = (x.unsqueeze(0).transpose(1, 2) for x in (a.q, a.key, a.value))
    causal = a.case.tokens > 1
    assert not causal or a.case.tokens == a.case.keys
    return lambda: _sdpa(q, k, v, is_causal=causal, enable_gqa=True)[0].transpose(0, 1)


@contender("attention", "torch", "SDPA")
def _sdpa_prepared(a: Inputs) -> Call:
    """Of keys and values that were brought into the best order before: each head's together, for
    prompts also once for each head of queries. What decodes has a group's heads as queries."""
    heads, kv_heads, tokens = a.case.heads, a.case.kv_heads, a.case.tokens
    k, v = (x.transpose(0, 1).contiguous().unsqueeze(0) for x in (a.key, a.value))
    if tokens == 1:
        q = a.q.view(1, kv_heads, heads // kv_heads, HEAD_DIM)
        return lambda: _sdpa(q, k, v).reshape(1, heads, HEAD_DIM)
    q = a.q.unsqueeze(0).transpose(1, 2)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    return lambda: _sdpa(q, k, v, is_causal=True)[0].transpose(0, 1)


def _append(a: Inputs, of: Callable[[torch.Tensor], Any]) -> Call:
    cache = _cache(a)
    key, value, slots, read = of(a.key), of(a.value), of(a.step.slots), _paged(a, of, cache)
    return lambda: (cache.append(key, value, slots), read)[1]


@contender(APPEND, "ours", "append")
def _append_tensors(a: Inputs) -> Call:
    return _append(a, _tensor)


@contender(APPEND, "ours", "NumPy append")
def _append_arrays(a: Inputs) -> Call:
    return _append(a, array)
