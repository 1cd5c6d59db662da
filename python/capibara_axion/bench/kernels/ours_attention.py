# SPDX-License-Identifier: Apache-2.0
"""Our attention and what writes its cache, on NumPy arrays and on torch tensors: over a paged cache
and over keys and values as they come (`dense`)."""

from __future__ import annotations

from capibara_axion import PagedKVCache, flash_attention, paged_attention
from capibara_axion.bench.kernels.arrays import empty_like
from capibara_axion.bench.kernels.cases import BLOCK, HEAD_DIM, Inputs
from capibara_axion.bench.kernels.contenders import APPEND, ATTENTION, Call, contender


def _cache(a: Inputs) -> PagedKVCache:
    return PagedKVCache(a.step.blocks, BLOCK, a.case.kv_heads, HEAD_DIM, a.case.cache_dtype)


def _read(a: Inputs, cache: PagedKVCache) -> Call:
    """As vLLM calls it."""
    q, out, step = a.q, empty_like(a.q), a.step
    table, lengths, start = step.block_table, step.seq_lens, step.query_start
    return lambda: (paged_attention(q, cache, table, lengths, query_start=start, out=out), out)[1]


@contender(ATTENTION, "ours", "paged out")
@contender(ATTENTION, "ours", "NumPy paged out", arrays=True)
def _paged(a: Inputs) -> Call:
    cache = _cache(a)
    cache.append(a.key, a.value, a.step.slots)
    return _read(a, cache)


@contender("attention", "ours", "dense out")
@contender("attention", "ours", "NumPy dense out", arrays=True)
def _dense(a: Inputs) -> Call:
    q, k, v, out = a.q[None], a.key[None], a.value[None], empty_like(a.q)
    into = out[None]
    return lambda: (flash_attention(q, k, v, out=into), out)[1]


@contender(APPEND, "ours", "append")
@contender(APPEND, "ours", "NumPy append", arrays=True)
def _append(a: Inputs) -> Call:
    cache = _cache(a)
    key, value, slots, read = a.key, a.value, a.step.slots, _read(a, cache)

    def call() -> Call:
        cache.append(key, value, slots)
        return read

    return call
