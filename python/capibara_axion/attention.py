# SPDX-License-Identifier: Apache-2.0
"""Attention, over dense keys and values and over those of a paged cache."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from capibara_axion import _core
from capibara_axion.ops import Array, _torch_ops

if TYPE_CHECKING:
    from capibara_axion.kv_cache import PagedKVCache

Window: TypeAlias = "int | tuple[int, int] | None"


def _window_sides(window: Window, causal: bool) -> tuple[int, int]:
    """How many keys a query sees to its left and right; -1: all."""
    if window is None:
        return -1, -1
    sides = window if isinstance(window, (tuple, list)) else None
    try:
        if sides is None:
            width = index(window)  # type: ignore[arg-type]
            if width >= 1:
                return width - 1, 0 if causal else -1
        elif len(sides) == 2:
            left, right = index(sides[0]), index(sides[1])
            if left >= -1 and right >= -1:
                return left, right
    except TypeError:
        given = type(window).__name__
        raise TypeError(
            f"window: expected a number of keys, (left, right) or None, got {given}"
        ) from None
    raise ValueError(
        "window: expected at least 1, or (left, right) of numbers that are not negative, or -1 for "
        f"no limit, got {window}"
    )


# causal, window_left, window_right, softcap, alibi_slopes, sinks, ranges
_Options: TypeAlias = tuple[bool, int, int, float, Any, Any, Any]
_PLAIN: _Options = (True, -1, -1, 0.0, None, None, None)


def _options(
    causal: bool, window: Window, softcap: float, alibi_slopes: Any, sinks: Any, ranges: Any
) -> _Options | tuple[()]:
    """Nothing where all are as the operators have them by themselves: passing them takes time."""
    if alibi_slopes is sinks is ranges is window is None and causal and softcap == 0.0:
        return ()
    left, right = _window_sides(window, causal)
    return bool(causal), left, right, softcap, alibi_slopes, sinks, ranges


def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: Window = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    ranges: Array | None = None,
    query_start: Array | None = None,
    key_start: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Attention, `softmax(q k^T) v` for each head, in memory that does not grow with the keys.

    A. Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762); T. Dao,
    "FlashAttention-2" (2023, arXiv:2307.08691). With groups of queries' heads that share keys and
    values: J. Ainslie et al., "GQA" (2023, arXiv:2305.13245).

        z[i, j] = cap(scale q[i] . k[j]) + slope (j - i)      cap(x) = softcap tanh(x / softcap)
        out[i]  = sum of exp(z[i, j]) v[j] / (sum of exp(z[i, j]) + exp(sink)), over visible j

    Positions count from a sequence's first key, and its last query stands at its last key, so that
    the queries may be fewer than the keys, or more: those before the first key see what their
    position lets them. A query that sees nothing, or only -infinity, gives zeros. NaN or infinity
    in a value may make NaN of that element even for queries that do not see it, in a key not.

    Products are those of `matmul`, sums and softmax float32; before they meet the values, the
    exponentials are rounded to the arrays' dtype. The result depends neither on the number of
    threads nor on what else is in the batch.

    Args:
        q: `[B, Tq, H, D]`; or with `query_start` all sequences' tokens in one, `[T, H, D]`.
            float32, float16 or bfloat16; D a multiple of 16 up to 512. D is contiguous, the strides
            of tokens and heads are free: q, k and v may be slices of one tensor. Sequences that do
            not follow one another at the stride of tokens are copied first.
        k: `[B, Tk, Hkv, D]`, or `[S, Hkv, D]`, in q's dtype; Hkv divides H.
        v: as k.
        causal: whether a query sees no keys after its own position.
        window: None, or a sliding window. An integer w, as Mistral (A. Jiang et al., 2023,
            arXiv:2310.06825) and vLLM have it: the query's own position and the w - 1 before it,
            and without `causal` all after it. Or a pair (left, right), as flash-attention has it:
            so many keys to either side, -1 for all.
        softcap: bound of the logits as in Gemma 2 (2024, arXiv:2408.00118); 0 for none.
        scale: a finite factor; `1 / sqrt(D)` if None.
        alibi_slopes: `[H]`, added to the logits times the distance: O. Press et al., "Train Short,
            Test Long" (2022, arXiv:2108.12409). None for none.
        sinks: `[H]`, one more logit for each head, without a value: G. Xiao et al., "Efficient
            Streaming Language Models with Attention Sinks" (2024, arXiv:2309.17453), as gpt-oss
            has them. None for none.
        ranges: int32 `[n, 3]`, (sequence, begin, end) each: the positions from begin to end - 1
            see each other, whatever `causal` and `window` say, as the tokens of one image in Gemma
            3 do. Sorted, apart from each other, within the keys. None for none.
        query_start: int32 `[B + 1]`, where each sequence begins in q, from 0 to T; or None.
        key_start: likewise for k and v; `query_start` if None.
        out: as q, apart from q, k and v; a new array if None.

    Returns:
        out.

    Raises:
        TypeError: an argument of a wrong type or dtype; the message names it.
        ValueError: a wrong shape, value or layout; with torch tensors, a wrong dtype too.
    """
    options = _options(causal, window, softcap, alibi_slopes, sinks, ranges)
    ops = _torch_ops(q)
    if ops is None:
        every = options or _PLAIN
        return _core.flash_attention(q, k, v, query_start, key_start, scale, *every, out)
    if out is None:
        return ops.flash_attention.default(q, k, v, query_start, key_start, scale, *options)
    ops.flash_attention_out.default(out, q, k, v, query_start, key_start, scale, *options)
    return out


def paged_attention(
    q: Array,
    cache: PagedKVCache,
    block_table: Array,
    seq_lens: Array,
    *,
    query_start: Array | None = None,
    causal: bool = True,
    window: Window = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    ranges: Array | None = None,
    out: Array | None = None,
) -> Array:
    """`flash_attention` over the keys and values in a paged cache: decoding, prefilling, or both.

    W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (2023, arXiv:2309.06180). Key j of sequence s is at position j % block_size of
    block `block_table[s, j // block_size]`; what a sequence's last block holds beyond it does not
    matter, NaN neither. 8-bit values are exact in the compute dtype; their scales are applied in
    float32.

    Args:
        q: `[T, H, D]` in the cache's compute dtype, all sequences' tokens one after the other; D
            contiguous, the strides of tokens and heads free.
        cache: the keys and values, those of q's own tokens included (`PagedKVCache.append`).
        block_table: int32 `[B, blocks]`; each sequence's blocks, of which as many count as its
            length fills.
        seq_lens: int32 `[B]`, the sequences' keys, those of q's own tokens included.
        query_start: int32 `[B + 1]`, where each sequence begins in q, from 0 to T; one query a
            sequence if None. No sequence has more queries than keys.
        causal, window, softcap, scale, alibi_slopes, sinks, ranges: as in `flash_attention`.
        out: as q; a new array if None.

    Returns:
        out.

    Raises:
        TypeError: an argument of a wrong type or dtype; the message names it.
        ValueError: a wrong shape, value or layout; a block or length that the cache or the table
            does not have; with torch tensors, a wrong dtype too.
    """
    options = _options(causal, window, softcap, alibi_slopes, sinks, ranges)
    ops = _torch_ops(q)
    try:
        memory = cache._arrays() if ops is None else cache._tensors()
    except AttributeError:
        given = type(cache).__name__
        raise TypeError(f"cache: expected a PagedKVCache, got {given}") from None
    if ops is None:
        every = options or _PLAIN
        # mypy loses count of two tuples.
        return _core.paged_attention(
            q,
            *memory,
            block_table,
            seq_lens,
            query_start,
            scale,
            *every,  # type: ignore[arg-type]
            out,
        )
    if out is None:
        return ops.paged_attention.default(
            q, *memory, block_table, seq_lens, query_start, scale, *options
        )
    ops.paged_attention_out.default(
        out, q, *memory, block_table, seq_lens, query_start, scale, *options
    )
    return out
