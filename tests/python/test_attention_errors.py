# SPDX-License-Identifier: Apache-2.0
"""Bad arguments of attention and its cache: the right exception, naming the argument."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from refusals import check_refused

import capibara_axion as ax
from capibara_axion import _core

F32, F16, I32 = np.float32, np.float16, np.int32


def x(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


def ints(*values: Any, dtype: Any = I32) -> np.ndarray:
    return np.array(values, dtype)


def flash(**changes: Any) -> Any:
    arguments = {"q": x(2, 3, 4, 32), "k": x(2, 5, 2, 32), "v": x(2, 5, 2, 32)}
    return ax.flash_attention(**arguments | changes)


def varlen(**changes: Any) -> Any:
    arguments = {
        "q": x(6, 4, 32),
        "k": x(9, 2, 32),
        "v": x(9, 2, 32),
        "query_start": ints(0, 2, 6),
        "key_start": ints(0, 3, 9),
    }
    return ax.flash_attention(**arguments | changes)


CACHE = ax.PagedKVCache(6, 16, 2, 32, "float32")
FP8 = ax.PagedKVCache(6, 16, 2, 32, "fp8_e4m3", compute_dtype="float16")


def paged(**changes: Any) -> Any:
    arguments = {
        "q": x(2, 4, 32),
        "cache": CACHE,
        "block_table": ints([0, 1], [2, 5]),
        "seq_lens": ints(20, 32),
    }
    return ax.paged_attention(**arguments | changes)


def append(cache: ax.PagedKVCache = CACHE, **changes: Any) -> None:
    arguments = {"key": x(3, 2, 32), "value": x(3, 2, 32), "slot_mapping": np.array([1, -1, 95])}
    cache.append(**arguments | changes)


def new(*shape: Any, **options: Any) -> ax.PagedKVCache:
    return ax.PagedKVCache(*(shape or (2, 16, 2, 32)), **options)


def over(data: Any = None, **options: Any) -> ax.PagedKVCache:
    data = x(2, 2, 16, 64) if data is None else data
    return ax.PagedKVCache.over(data, **{"dtype": "float32"} | options)


DATA8 = np.zeros((2, 2, 16, 64), np.uint8)
READ_ONLY = np.broadcast_to(x(16, 64), (2, 2, 16, 64))
Case = tuple[Callable[[], Any], type[Exception], str]

ATTENTION: list[Case] = [
    (lambda: flash(q=[1.0]), TypeError, "q: expected a NumPy array or a torch tensor"),
    (lambda: flash(k=None), TypeError, "k: expected a NumPy array, as the first argument is"),
    (lambda: flash(v=3), TypeError, "v: expected a NumPy array"),
    (lambda: flash(sinks=[1.0] * 4), TypeError, "sinks: expected a NumPy array"),
    (lambda: flash(q=x(2, 3, 4, 32, dtype=float)), TypeError, "q: expected float32, "),
    (lambda: flash(k=x(2, 5, 2, 32, dtype=F16)), TypeError, "k: expected the dtype of q, float32"),
    (lambda: flash(v=x(2, 5, 2, 32, dtype=F16)), TypeError, "v: expected the dtype of q"),
    (lambda: flash(out=x(2, 3, 4, 32, dtype=F16)), TypeError, "out: expected the dtype of q"),
    (lambda: flash(q=x(3, 4, 32)), ValueError, r"q: expected shape \[batch, .* query_start as"),
    (lambda: flash(q=x(2, 3, 4, 40)), ValueError, "q: expected a head_dim from 16 to 512 .* 40"),
    (lambda: flash(q=x(2, 3, 4, 528)), ValueError, "q: expected a head_dim from 16 to 512"),
    (lambda: flash(q=x(2, 3, 4, 0)), ValueError, "q: expected a head_dim"),
    (lambda: flash(q=x(2, 3, 3, 32)), ValueError, "q: expected a multiple of the 2 heads of keys"),
    (lambda: flash(q=x(2, 3, 0, 32)), ValueError, "q: expected a multiple of the 2 heads of keys"),
    (lambda: flash(k=x(2, 5, 0, 32)), ValueError, "q: expected a multiple of the 0 heads of keys"),
    (lambda: flash(k=x(2, 5, 2, 48)), ValueError, r"k: expected shape \[2, tokens, heads, 32\]"),
    (lambda: flash(k=x(3, 5, 2, 32)), ValueError, r"k: expected shape \[2, tokens, heads, 32\]"),
    (lambda: flash(k=x(10, 2, 32)), ValueError, r"k: expected shape \[2, tokens, heads, 32\]"),
    (lambda: flash(v=x(2, 4, 2, 32)), ValueError, "v: expected the shape of k"),
    (lambda: flash(v=x(2, 5, 2, 16)), ValueError, "v: expected the shape of k"),
    (lambda: flash(out=x(2, 3, 4, 16)), ValueError, "out: expected the shape of q"),
    (lambda: flash(out=x(2, 3, 4, 64)[..., ::2]), ValueError, "out: expected a last dimension of"),
    (
        lambda: flash(out=x(2, 4, 3, 32).transpose(0, 2, 1, 3)),
        ValueError,
        "out: expected tokens at one stride",
    ),
    (lambda: flash(out=np.broadcast_to(x(4, 32), (2, 3, 4, 32))), ValueError, "out: expected a wr"),
    (lambda: flash(scale=np.nan), ValueError, "scale: expected a finite float32, got nan"),
    (lambda: flash(scale=1e39), ValueError, "scale: expected a finite float32"),
    (lambda: flash(scale="1"), TypeError, "scale: expected a number, got str"),
    (lambda: flash(softcap=-1.0), ValueError, "softcap: expected a number that is not negative"),
    (lambda: flash(softcap=np.inf), ValueError, "softcap: expected a finite"),
    (lambda: flash(softcap=None), TypeError, "softcap: expected a number, got NoneType"),
    (lambda: flash(window=0), ValueError, "window: expected at least 1, or"),
    (lambda: flash(window=(-2, 0)), ValueError, "window: expected at least 1, or"),
    (lambda: flash(window=(1, 2, 3)), ValueError, "window: expected at least 1, or"),
    (lambda: flash(window=1.5), TypeError, "window: expected a number of keys, .* got float"),
    (lambda: flash(window=(1.5, 0)), TypeError, "window: expected a number of keys"),
    (lambda: flash(alibi_slopes=x(3)), ValueError, r"alibi_slopes: expected .* shape \[4\], got"),
    (lambda: flash(alibi_slopes=ints(1, 2, 3, 4)), TypeError, "alibi_slopes: expected float32, "),
    (lambda: flash(sinks=x(1, 4)), ValueError, r"sinks: expected one number a head, shape \[4\]"),
    (lambda: flash(ranges=ints([0, 1, 2], dtype=np.int64)), TypeError, "ranges: expected int32"),
    (lambda: flash(ranges=ints(0, 1, 2)), ValueError, r"ranges: expected shape \[n, 3\]"),
    (lambda: flash(ranges=ints([0, 1, 6])), ValueError, "ranges: expected 0 <= begin < end <= 5"),
    (lambda: flash(ranges=ints([0, -1, 3])), ValueError, "ranges: expected 0 <= begin"),
    (lambda: flash(ranges=ints([0, 3, 3])), ValueError, "ranges: expected 0 <= begin"),
    (lambda: flash(ranges=ints([2, 1, 3])), ValueError, "ranges: expected sequences from 0 to 1"),
    (lambda: flash(ranges=ints([-1, 1, 3])), ValueError, "ranges: expected sequences from 0 to 1"),
    (
        lambda: flash(ranges=ints([0, 1, 3], [0, 2, 4])),
        ValueError,
        r"ranges: expected ranges apart from each other, sorted .* got \(0, 2, 4\) as number 1",
    ),
    (lambda: flash(ranges=ints([1, 1, 3], [0, 2, 4])), ValueError, "ranges: expected ranges apart"),
    (lambda: flash(key_start=ints(0, 5)), ValueError, "key_start: expected query_start as well"),
    # all sequences' tokens in one
    (lambda: varlen(q=x(1, 6, 4, 32)), ValueError, r"q: expected shape \[tokens, heads, head_dim"),
    (lambda: varlen(k=x(1, 9, 2, 32)), ValueError, r"k: expected shape \[tokens, heads, 32\]"),
    (lambda: varlen(query_start=[0, 2, 6]), TypeError, "query_start: expected a NumPy array"),
    (lambda: varlen(query_start=np.array([0, 2, 6])), TypeError, "query_start: expected int32"),
    (lambda: varlen(query_start=ints()), ValueError, r"query_start: expected shape \[sequences"),
    (lambda: varlen(query_start=ints(1, 2, 6)), ValueError, "query_start: expected 0 first, got 1"),
    (lambda: varlen(query_start=ints(0, 2, 5)), ValueError, "query_start: expected 6 last, the to"),
    (lambda: varlen(query_start=ints(0, 7, 6)), ValueError, "query_start: expected .* 6 after 7"),
    (lambda: varlen(key_start=ints(0, 9)), ValueError, r"key_start: expected shape \[3\], as quer"),
    (lambda: varlen(key_start=ints(0, 3, 8)), ValueError, "key_start: expected 9 last, the tokens"),
    (lambda: varlen(key_start=None), ValueError, "query_start: expected 9 last, the tokens of k"),
]

PAGED: list[Case] = [
    (lambda: paged(q=[1.0]), TypeError, "q: expected a NumPy array or a torch tensor"),
    (lambda: paged(cache=CACHE.data), TypeError, "cache: expected a PagedKVCache, got ndarray"),
    (lambda: paged(cache=FP8), TypeError, "q: expected the compute dtype of the cache, float16"),
    (lambda: paged(q=x(2, 4, 32, dtype=F16)), TypeError, "q: expected the compute dtype of the"),
    (lambda: paged(q=x(2, 4, 48)), ValueError, "q: expected the head_dim of the cache, 32, got 48"),
    (lambda: paged(q=x(2, 3, 32)), ValueError, "q: expected a multiple of the 2 heads of keys"),
    (lambda: paged(q=x(1, 2, 4, 32)), ValueError, r"q: expected shape \[tokens, heads, head_dim\]"),
    (lambda: paged(q=x(3, 4, 32)), ValueError, "q: expected one token for each of the 2 seq_lens"),
    (lambda: paged(seq_lens=[20, 32]), TypeError, "seq_lens: expected a NumPy array"),
    (lambda: paged(seq_lens=np.array([20, 32])), TypeError, "seq_lens: expected int32, got int64"),
    (lambda: paged(seq_lens=ints([20, 32])), ValueError, r"seq_lens: expected shape \[sequences\]"),
    (lambda: paged(seq_lens=ints(20, 33)), ValueError, "seq_lens: expected .* 1, to 32, .* got 33"),
    (lambda: paged(seq_lens=ints(20, 0)), ValueError, "seq_lens: expected numbers from that of"),
    (lambda: paged(seq_lens=ints(20, -5)), ValueError, "seq_lens: expected numbers from that of"),
    (lambda: paged(block_table=np.zeros((2, 2), int)), TypeError, "block_table: expected int32"),
    (lambda: paged(block_table=ints(0, 1)), ValueError, r"block_table: expected shape \[2, blocks"),
    (
        lambda: paged(block_table=ints([0, 1])),
        ValueError,
        r"block_table: expected shape \[2, block",
    ),
    (
        lambda: paged(block_table=ints([0, 1], [2, 6])),
        ValueError,
        "block_table: expected blocks from 0 to 5, got 6 for sequence 1",
    ),
    (lambda: paged(block_table=ints([-1, 1], [2, 3])), ValueError, "block_table: expected blocks"),
    (lambda: paged(query_start=ints(0, 2)), ValueError, r"query_start: expected shape \[3\], one"),
    (lambda: paged(query_start=ints(0, 1, 3)), ValueError, "query_start: expected 2 last, the"),
    (
        lambda: paged(q=x(22, 4, 32), query_start=ints(0, 21, 22)),
        ValueError,
        "seq_lens: expected numbers from that of the sequence's queries, 21, to 32",
    ),
    (lambda: paged(out=x(2, 4, 16)), ValueError, "out: expected the shape of q"),
    (
        lambda: paged(ranges=ints([0, 10, 21])),
        ValueError,
        "ranges: expected 0 <= begin < end <= 20",
    ),
    (lambda: paged(window=-1), ValueError, "window: expected at least 1"),
]

CACHES: list[Case] = [
    (lambda: append(key=[1.0]), TypeError, "key: expected a NumPy array or a torch tensor"),
    (lambda: append(key=x(3, 2, 32, dtype=F16)), TypeError, "key: expected float32, the compute"),
    (
        lambda: append(FP8, key=x(3, 2, 32, dtype=int)),
        TypeError,
        "key: expected float32, float16 or",
    ),
    (lambda: append(FP8, value=x(3, 2, 32, dtype=F16)), TypeError, "value: expected the dtype of"),
    (lambda: append(key=x(2, 2, 32)), ValueError, r"key: expected shape \[3, 2, 32\], got \[2, 2"),
    (lambda: append(key=x(3, 64)), ValueError, r"key: expected shape \[3, 2, 32\]"),
    (lambda: append(value=x(3, 1, 32)), ValueError, r"value: expected shape \[3, 2, 32\]"),
    (lambda: append(slot_mapping=ints(1, 2, 3)), TypeError, "slot_mapping: expected int64, got"),
    (
        lambda: append(slot_mapping=np.zeros((3, 1), int)),
        ValueError,
        "slot_mapping: expected shape",
    ),
    (lambda: append(slot_mapping=np.array([1, 2, 96])), ValueError, "slot_mapping: expected slots"),
    (lambda: CACHE.gather([1]), TypeError, "slots: expected a NumPy array or a torch tensor"),
    (lambda: CACHE.gather(ints(1)), TypeError, "slots: expected int64, got int32"),
    (lambda: CACHE.gather(np.array([96])), ValueError, "slots: expected slots below 96, .* got 96"),
    (
        lambda: CACHE.gather(np.array([1]), "float16"),
        ValueError,
        "dtype: expected one of 'float32'",
    ),
    (lambda: new(0, 16, 2, 32), ValueError, "num_blocks: expected a positive number, got 0"),
    (lambda: new(2.5, 16, 2, 32), TypeError, "num_blocks: expected an integer, got float"),
    (lambda: new(2, 24, 2, 32), ValueError, "block_size: expected a multiple of 16"),
    (lambda: new(2, 16, 0, 32), ValueError, "num_kv_heads: expected a positive number"),
    (
        lambda: new(2, 16, 2, 40),
        ValueError,
        "head_dim: expected a multiple of 16 up to 512, got 40",
    ),
    (lambda: new(2, 16, 2, 528), ValueError, "head_dim: expected a multiple of 16 up to 512"),
    (lambda: new(dtype="fp8"), ValueError, "dtype: expected one of 'float32', .* got 'fp8'"),
    (lambda: new(dtype=np.float32), TypeError, "dtype: expected a string, got type"),
    (lambda: new(compute_dtype="float32"), ValueError, "compute_dtype: expected one of 'bfloat16'"),
    (
        lambda: new(dtype="fp8_e4m3", compute_dtype="x"),
        ValueError,
        "compute_dtype: expected one of",
    ),
    (lambda: new(scales="head"), ValueError, "scales: expected 'tensor' for a cache of bfloat16"),
    (lambda: new(dtype="fp8_e4m3", scales="block"), ValueError, "scales: expected one of 'tensor'"),
    (lambda: new(key_scale=2.0), ValueError, "key_scale: expected 1.0, as bfloat16 has none"),
    (
        lambda: new(dtype="fp8_e4m3", scales="token", value_scale=2.0),
        ValueError,
        "value_scale: expected 1.0, as scales 'token' has none",
    ),
    (lambda: new(dtype="fp8_e4m3", key_scale=0.0), ValueError, "key_scale: expected a number from"),
    (lambda: new(dtype="fp8_e4m3", key_scale="a"), TypeError, "key_scale: expected a number"),
    (
        lambda: new(dtype="fp8_e4m3", key_scale=[1, 2]),
        ValueError,
        "key_scale: expected a number, g",
    ),
    (
        lambda: new(dtype="fp8_e4m3", scales="head", value_scale=[1, 2, 3]),
        ValueError,
        r"value_scale: expected numbers \[2\], got shape \[3\]",
    ),
    (
        lambda: new(dtype="fp8_e4m3", scales="head", value_scale=[1, np.nan]),
        ValueError,
        "value_scale: expected a number from 2",
    ),
    (lambda: over([1.0]), TypeError, "data: expected a NumPy array or a torch tensor, got list"),
    (lambda: over(x(2, 2, 16, 64, dtype=F16)), TypeError, "data: expected float32, got float16"),
    (lambda: over(DATA8), TypeError, "data: expected float32, got uint8"),
    (lambda: over(dtype="fp8_e4m3"), TypeError, "data: expected uint8, got float32"),
    (lambda: over(x(2, 16, 64)), ValueError, r"data: expected shape \[blocks, heads, block_size"),
    (lambda: over(x(2, 2, 24, 64)), ValueError, r"data: expected shape \[blocks, heads, block_s"),
    (lambda: over(x(2, 2, 16, 48)), ValueError, r"data: expected shape \[blocks, heads, block_si"),
    (
        lambda: over(x(2, 16, 2, 64).transpose(0, 2, 1, 3)),
        ValueError,
        "data: expected each head of a block contiguous, got strides 128 and 1",
    ),
    (lambda: over(key_scale=0.5), ValueError, "key_scale: expected 1.0, as float32 has none"),
    (
        lambda: over(DATA8, dtype="fp8_e4m3", key_scale=x(2, 2, 15), value_scale=x(2, 2, 15)),
        ValueError,
        "key_scales: expected shape",
    ),
    (
        lambda: over(DATA8, dtype="fp8_e4m3", key_scale=x(2, 2, 16), value_scale=x(2, 2, 15)),
        ValueError,
        "value_scales: expected shape",
    ),
    (
        lambda: over(DATA8, dtype="fp8_e4m3", key_scale=[1.0, 2.0, 3.0]),
        ValueError,
        r"key_scale: expected numbers \[2\]",
    ),
    (
        lambda: append(over(READ_ONLY), slot_mapping=np.array([0, 1, 2])),
        ValueError,
        "data: expected a writable array",
    ),
]


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [*ATTENTION, *PAGED, *CACHES],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_message_names_the_argument(
    call: Callable[[], Any], exception: type[Exception], message: str
) -> None:
    check_refused(call, exception, message)


def test_the_calls_themselves_are_right() -> None:
    assert flash().shape == (2, 3, 4, 32)
    assert varlen().shape == (6, 4, 32)
    assert paged().shape == (2, 4, 32)
    append()
    append(FP8)
    assert over().scales == "tensor"


def test_out_lies_apart() -> None:
    q = x(2, 3, 4, 32)
    with pytest.raises(ValueError, match=r"^out: expected memory apart from q, got an overlap"):
        flash(q=q, out=q)
    kv = x(2, 3, 4, 32)
    with pytest.raises(ValueError, match=r"^out: expected memory apart from v"):
        ax.flash_attention(q, x(2, 3, 4, 32), kv, out=kv)


def test_a_refused_append_writes_nothing() -> None:
    for cache in (new(dtype="float32"), new(dtype="fp8_e4m3", scales="token")):
        before = cache.data.tobytes()
        with pytest.raises(ValueError, match="slot_mapping"):
            append(cache, slot_mapping=np.array([0, 1, 32]))
        assert cache.data.tobytes() == before


def test_every_call_is_counted() -> None:
    def counted(call: Callable[[], Any]) -> dict[str, int]:
        _core.reset_call_counts()
        call()
        return {op: count for op, count in _core.call_counts().items() if count}

    assert counted(flash) == {"attention": 1}
    assert counted(varlen) == {"attention": 1}
    assert counted(paged) == {"attention": 1}
    assert counted(append) == {"kv_cache_append": 1}
    assert counted(lambda: ax.fp8_quantize(x(4))) == {"fp8_encode": 1}
    assert counted(lambda: ax.fp8_dequantize(x(4, dtype=np.uint8))) == {"fp8_decode": 1}


def test_no_reference_is_kept() -> None:
    """Neither a call nor a refusal holds on to its arguments."""
    q, kv, sinks, lengths = x(2, 4, 32), x(2, 5, 2, 32), x(4), ints(20, 32)
    wrong, slots, key = ints(20, 99), np.array([1, 2, 3]), x(3, 2, 32)
    shared = (q, kv, sinks, lengths, wrong, slots, key, CACHE.data)
    before = [sys.getrefcount(array) for array in shared]
    for _ in range(50):
        flash(k=kv, v=kv, sinks=sinks)
        paged(q=q, seq_lens=lengths, sinks=sinks)
        append(key=key, slot_mapping=slots)
        CACHE.gather(slots)
        for call in (
            lambda: paged(q=q, seq_lens=wrong, sinks=sinks),
            lambda: flash(k=kv, v=kv, sinks=lengths[:0].astype(F32)),
            lambda: append(key=key, slot_mapping=slots + 95),
        ):
            with pytest.raises(ValueError, match="expected"):
                call()
    assert [sys.getrefcount(array) for array in shared] == before
