# SPDX-License-Identifier: Apache-2.0
"""The paged cache: what is stored, how it is read back, and attention over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_cases import TYPES, Paged, poison, some, starts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import BFLOAT16, FLOAT32, Array, normal, wide
from products import EMULATED

import capibara_axion as ax
from capibara_axion import reference

FP8 = ("fp8_e4m3", "fp8_e5m2")
COMPUTE = ("float32", "float16", "bfloat16")
# (dtype, compute dtype, scales)
KINDS = [
    *((name, name, "tensor") for name in COMPUTE),
    *((name, to, "tensor") for name in FP8 for to in COMPUTE),
    *((name, "bfloat16", scales) for name in FP8 for scales in ("head", "token")),
    ("fp8_e4m3", "float32", "token"),
    ("fp8_e5m2", "float16", "head"),
]
each_kind = pytest.mark.parametrize("kind", some(KINDS), ids="-".join)
EXAMPLES = 5 if EMULATED else 30


def cache_of(kind: tuple[str, str, str], *shape: int, **options: Any) -> ax.PagedKVCache:
    dtype, compute, scales = kind
    if dtype in FP8:
        options |= {"compute_dtype": compute, "scales": scales}
    return ax.PagedKVCache(*shape, dtype, **options)


def stored(x: Array, dtype: str, scale: Any) -> Array:
    """x as a cache holds it, in float32; scale: broadcasts with it, or "token"."""
    if dtype not in FP8:
        return x.astype(TYPES[dtype]).astype(np.float32)
    name = dtype.removeprefix("fp8_")
    if isinstance(scale, str):
        scale = token_scale(x, name)
    factor = np.float32(1) / np.asarray(scale, np.float32)
    codes = reference.fp8_quantize(x.astype(np.float32) * factor, name)
    numbers = reference.fp8_dequantize(codes, name).astype(np.float32)
    return numbers * np.asarray(scale, np.float32)


def token_scale(x: Array, format: str) -> Array:
    largest = np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True)
    scale = largest / np.float32({"e4m3": 448, "e5m2": 57344}[format])
    return np.where(largest == 0, np.float32(1), scale).astype(np.float32)


@each_kind
@pytest.mark.parametrize("from_float32", [False, True])
@pytest.mark.parametrize("sizes", some([(48, 80), (32, 64), (128, 112), (16, 512)]), ids=str)
def test_append_and_gather(
    rng: np.random.Generator, kind: tuple[str, str, str], from_float32: bool, sizes: tuple[int, int]
) -> None:
    dtype, compute, scales = kind
    block_size, head_dim = sizes
    options: dict[str, Any] = {}
    if dtype in FP8 and scales != "token":
        heads = (3,) if scales == "head" else ()
        options = {
            "key_scale": rng.uniform(0.01, 0.1, heads),
            "value_scale": rng.uniform(0.01, 0.1, heads),
        }
    cache = cache_of(kind, 7, block_size, 3, head_dim, **options)
    poison(cache)
    slots = rng.permutation(7 * block_size)[: 5 * block_size // 2].astype(np.int64)
    slots[3], slots[8] = -1, -100
    of = FLOAT32 if from_float32 else TYPES[compute]
    key, value = (normal(rng, (len(slots), 3, head_dim), of) for _ in range(2))
    cache.append(key, value, slots)
    kept = slots >= 0
    stored_pair = cache.gather(slots, "float32")
    for x, back, name in zip((key, value), stored_pair, ("key", "value"), strict=True):
        assert (back[~kept] == 0).all()
        if scales == "token":
            expected = stored(x, dtype, "token")
            # A last bit of the scale may fall otherwise, and a code at a tie with it.
            step = np.abs(expected) * (2.0**-3 if dtype == "fp8_e4m3" else 2.0**-2)
            step += token_scale(x, dtype.removeprefix("fp8_")) * 2.0**-8
            close = np.abs(back - expected) <= 4 * 2.0**-24 * np.abs(expected)
            assert close[kept].mean() > 0.999
            assert (np.abs(back - expected) <= 1.01 * step)[kept].all()
        else:
            scale = np.asarray(options.get(f"{name}_scale", 1.0))
            expected = stored(x, dtype, scale.reshape(-1, 1) if scale.ndim else scale)
            assert back[kept].tobytes() == expected[kept].tobytes()
    for wide_x, x in zip(cache.gather(slots, "float32"), cache.gather(slots), strict=True):
        assert x.dtype == TYPES[compute]
        assert x.tobytes() == wide_x.astype(TYPES[compute]).tobytes()


@each_kind
def test_nothing_else_is_written(rng: np.random.Generator, kind: tuple[str, str, str]) -> None:
    cache = cache_of(kind, 4, 32, 2, 48)
    everything = np.arange(4 * 32)
    shape = (len(everything), 2, 48)
    cache.append(normal(rng, shape, FLOAT32), normal(rng, shape, FLOAT32), everything)
    before = cache.gather(everything, "float32")
    slots = np.array([5, 127, -1, 40, 6, 41], np.int64)
    key, value = (normal(rng, (6, 2, 48), FLOAT32) for _ in range(2))
    cache.append(key, value, slots)
    after = cache.gather(everything, "float32")
    others = np.setdiff1d(everything, slots)
    for old, new in zip(before, after, strict=True):
        assert old[others].tobytes() == new[others].tobytes()
    cache.append(key[:0], value[:0], slots[:0])
    cache.append(key, value, np.full(6, -1))
    again = cache.gather(everything, "float32")
    assert [x.tobytes() for x in again] == [x.tobytes() for x in after]


def test_strided_keys(rng: np.random.Generator) -> None:
    """Slices of a fused qkv, read where they lie."""
    qkv = normal(rng, (9, (4 + 2 + 2) * 32), BFLOAT16)
    key, value = qkv[:, 128:192].reshape(9, 2, 32), qkv[:, 192:].reshape(9, 2, 32)
    assert np.shares_memory(key, qkv)
    cache = ax.PagedKVCache(2, 16, 2, 32)
    slots = np.arange(9)[::-1] + 3
    cache.append(key, value, slots)
    back = cache.gather(slots)
    assert (back[0] == key).all()
    assert (back[1] == value).all()
    cache.append(
        key.astype(FLOAT32).transpose(0, 2, 1).copy().transpose(0, 2, 1),
        value.astype(FLOAT32),
        slots,
    )
    assert (cache.gather(slots)[0] == key).all()


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_no_bit_depends_on_the_number_of_threads(rng: np.random.Generator, threads: int) -> None:
    tokens = 300
    key, value = (normal(rng, (tokens, 4, 128), BFLOAT16) for _ in range(2))
    slots = rng.permutation(40 * 16)[:tokens].astype(np.int64)
    slots[50] = slots[250]  # of two equal slots the last one stays
    contents = []
    try:
        for count in (1, threads):
            ax.set_num_threads(count)
            cache = ax.PagedKVCache(40, 16, 4, 128, "fp8_e4m3", scales="token")
            cache.append(key, value, slots)
            memory = (cache.data, cache.key_scales, cache.value_scales)
            contents.append([x.tobytes() for x in memory])
    finally:
        ax.set_num_threads(0)
    assert contents[0] == contents[1]


@each_kind
@pytest.mark.parametrize("block_size", some([16, 32, 128, 48]))
def test_attention_over_a_cache(
    rng: np.random.Generator, kind: tuple[str, str, str], block_size: int
) -> None:
    """Decoding and prefilling in one batch; NaN in all slots that hold no token."""
    dtype, compute, scales = kind
    queries, keys = [1, 21, 1, 0, 4], [1, 21, 130, 40, 77]
    paged = Paged(rng, keys, 2, 64, block_size, dtype, compute, scales)
    q = normal(rng, (sum(queries), 6, 64), paged.dtype)
    paged.check(q, starts_of(queries))
    paged.check(q[: len(keys)], what="decoding")


@pytest.mark.parametrize("head_dim", some([32, 64, 80, 96, 112, 128, 160, 192, 256, 512]))
@pytest.mark.parametrize("dtype", TYPES)
def test_every_head_size(rng: np.random.Generator, dtype: str, head_dim: int) -> None:
    scales = "token" if dtype in FP8 else "tensor"
    paged = Paged(rng, [50, 3, 144], 2, head_dim, 48, dtype, "bfloat16", scales)
    q = normal(rng, (3, 4, head_dim), paged.dtype)
    paged.check(q)
    paged.check(np.concatenate([q, q]), starts_of([1, 1, 4]), window=20)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    block_size=st.sampled_from([16, 32, 48, 64, 128]),
    lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200)), min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 3), (9, 3)]),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 128]),
    window=st.one_of(st.none(), st.integers(1, 150)),
    seed=st.integers(0, 2**16),
)
def test_any_batch(
    kind: tuple[str, str, str],
    block_size: int,
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    queries = [own for own, _ in lengths]
    keys = [own + before for own, before in lengths]
    paged = Paged(rng, keys, heads[1], head_dim, block_size, *kind)
    q = normal(rng, (sum(queries), heads[0], head_dim), paged.dtype)
    paged.check(q, starts_of(queries), window=window)


def test_many_keys(rng: np.random.Generator) -> None:
    """More than one part of the keys; a batch of one decoding sequence."""
    keys = 700 if EMULATED else 6000
    for dtype in ("bfloat16", "fp8_e4m3"):
        paged = Paged(rng, [keys], 1, 64, 16, dtype)
        paged.check(normal(rng, (1, 4, 64), paged.dtype))


@pytest.mark.parametrize("dtype", [*COMPUTE, "fp8_e4m3"])
def test_what_follows_a_sequence_does_not_matter(rng: np.random.Generator, dtype: str) -> None:
    """Threads may take queries that see the last keys but one, beside which NaN lies."""
    try:
        for keys in range(40, 48):
            paged = Paged(rng, [keys], 3, 128, 16, dtype)
            q = normal(rng, (17, 6, 128), paged.dtype)
            for threads in (1, 2, 3):
                ax.set_num_threads(threads)
                paged.check(q, starts_of([17]), f"{keys} keys, {threads} threads")
    finally:
        ax.set_num_threads(0)


@pytest.mark.parametrize("dtype", COMPUTE)
def test_paged_as_dense(rng: np.random.Generator, dtype: str) -> None:
    """To the bounds of both; the orders of their sums may differ."""
    queries, keys = [5, 1], [60, 33]
    paged = Paged(rng, keys, 2, 64, 16, dtype)
    q, starts = normal(rng, (6, 4, 64), paged.dtype), starts_of(queries)
    k, v = paged.cache.gather(paged.slots)
    of_dense = ax.flash_attention(q, k, v, query_start=starts, key_start=paged.key_start)
    _, bound = paged.expect(q, starts)
    difference = np.abs(wide(paged.run(q, starts)) - wide(of_dense))
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert (difference <= 2 * bound + eps * np.abs(wide(of_dense)) + 1e-6).all()


def test_the_reference_of_pages(rng: np.random.Generator) -> None:
    paged = Paged(rng, [20, 45], 2, 32, 16, "float32")
    q = normal(rng, (2, 4, 32), FLOAT32)
    blocks = np.arange(paged.cache.num_blocks * 16)
    keys, values = (np.nan_to_num(x).reshape(-1, 16, 2, 32) for x in paged.cache.gather(blocks))
    given = reference.paged_attention(q, keys, values, paged.block_table, paged.lengths)
    exact, _ = paged.expect(q)
    assert np.abs(given - exact).max() < 1e-6


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize("dtype", FP8)
def test_scales_of_tokens(rng: np.random.Generator, dtype: str) -> None:
    """Of tokens small and large, the largest magnitude becomes the format's largest."""
    cache = ax.PagedKVCache(2, 16, 2, 32, dtype, compute_dtype="float32", scales="token")
    slots = np.arange(20)
    key, value = normal(rng, (20, 2, 32), FLOAT32), normal(rng, (20, 2, 32), FLOAT32)
    key *= (2.0 ** rng.integers(-90, 90, (20, 2, 1))).astype(np.float32)
    key[4, 1] = 0
    cache.append(key, value, slots)
    scales = cache.key_scales.transpose(0, 2, 1).reshape(32, 2)[:20]
    expected = token_scale(key, dtype.removeprefix("fp8_"))[..., 0]
    assert scales[4, 1] == 1
    assert np.allclose(scales, expected, rtol=2.0**-22, atol=0)
    back = cache.gather(slots, "float32")[0]
    assert (back[4, 1] == 0).all()
    largest = np.abs(key).max(axis=-1)
    assert np.allclose(np.abs(back).max(axis=-1), largest, rtol=2.0**-22, atol=0)
    key[3, 0, 5], key[6, 1, 0] = np.nan, np.inf
    cache.append(key, value, slots)
    scales = cache.key_scales.transpose(0, 2, 1).reshape(32, 2)[:20]
    assert np.argwhere(np.isnan(scales)).tolist() == [[3, 0], [6, 1]]
    assert np.isnan(cache.gather(np.array([3]), "float32")[0][0, 0]).all()


@pytest.mark.parametrize("dtype", FP8)
def test_what_does_not_fit_saturates(dtype: str) -> None:
    cache = ax.PagedKVCache(1, 16, 1, 16, dtype, key_scale=2.0, value_scale=0.5)
    key = np.zeros((1, 1, 16), BFLOAT16)
    key[0, 0, :4] = 1e6, -np.inf, np.nan, 3.0
    cache.append(key, key, np.array([2]))
    largest = {"fp8_e4m3": 448, "fp8_e5m2": 57344}[dtype]
    for x, scale in zip(cache.gather(np.array([2]), "float32"), (2.0, 0.5), strict=True):
        assert x[0, 0, :2].tolist() == [largest * scale, -largest * scale]
        assert np.isnan(x[0, 0, 2])
        assert x[0, 0, 3] == 3


# ---------------------------------------------------------------- the object


def test_attributes() -> None:
    cache = ax.PagedKVCache(5, 32, 3, 64)
    assert (cache.num_blocks, cache.block_size, cache.num_kv_heads, cache.head_dim) == (
        5,
        32,
        3,
        64,
    )
    assert (cache.dtype, cache.compute_dtype) == ("bfloat16", "bfloat16")
    assert cache.data.shape == (5, 3, 32, 128)
    assert cache.data.dtype == BFLOAT16
    assert cache.key_scales is None
    assert cache.nbytes == cache.data.nbytes == 5 * 3 * 32 * 128 * 2
    assert cache.data.ctypes.data % 64 == 0
    assert "dtype='bfloat16')" in repr(cache)
    cache = ax.PagedKVCache(5, 32, 3, 64, "fp8_e5m2", scales="token")
    assert (cache.dtype, cache.compute_dtype, cache.scales) == ("fp8_e5m2", "bfloat16", "token")
    assert cache.data.dtype == np.uint8
    assert cache.key_scales.shape == cache.value_scales.shape == (5, 3, 32)
    assert cache.nbytes == 5 * 3 * 32 * (128 + 8)
    assert "scales='token'" in repr(cache)
    cache = ax.PagedKVCache(5, 32, 3, 64, "fp8_e4m3", scales="head", key_scale=[1, 2, 3])
    assert cache.key_scales.tolist() == [1, 2, 3]
    assert cache.value_scales.tolist() == [1, 1, 1]
    assert ax.PagedKVCache(1, 16, 1, 16, "fp8_e4m3", key_scale=0.5).key_scales.tolist() == [0.5]


@each_kind
def test_over_memory_of_others(rng: np.random.Generator, kind: tuple[str, str, str]) -> None:
    """Blocks and heads at other strides, as vLLM's are; nothing is copied."""
    dtype, compute, scales = kind
    of = np.dtype(np.uint8) if dtype in FP8 else TYPES[dtype]
    # [heads, blocks, ...], with a gap after each block.
    memory = np.zeros((3, 6, 32 * 128 + 64), of)
    data = memory[:, :, :-64].reshape(3, 6, 32, 128).transpose(1, 0, 2, 3)
    options: dict[str, Any] = {}
    if dtype in FP8:
        options["compute_dtype"] = compute
        options["key_scale"], options["value_scale"] = {
            "tensor": (0.03, 0.05),
            "head": ([0.01, 0.02, 0.03], 0.05),
            "token": (np.ones((6, 3, 32), np.float32), np.ones((6, 3, 32), np.float32)),
        }[scales]
    data = np.lib.stride_tricks.as_strided(
        memory,
        (6, 3, 32, 128),
        [memory.strides[1], memory.strides[0], 128 * of.itemsize, of.itemsize],
    )
    cache = ax.PagedKVCache.over(data, dtype=dtype, **options)
    assert cache.data is data
    assert cache.scales == scales
    if scales == "token":
        assert cache.key_scales is options["key_scale"]
        options |= {"key_scale": 1.0, "value_scale": 1.0}
    plain = cache_of(
        kind, 6, 32, 3, 64, **{n: x for n, x in options.items() if n != "compute_dtype"}
    )
    slots = rng.permutation(6 * 32)[:150].astype(np.int64)
    key, value = (normal(rng, (150, 3, 64), TYPES[compute]) for _ in range(2))
    for each in (cache, plain):
        each.append(key, value, slots)
    assert (memory[:, :, -64:] == 0).all()
    assert data.tobytes() == plain.data.tobytes()
    q = normal(rng, (2, 6, 64), TYPES[compute])
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    results = [
        ax.paged_attention(q, each, table, np.array([90, 96], np.int32)) for each in (cache, plain)
    ]
    assert results[0].tobytes() == results[1].tobytes()


def test_a_table_of_other_strides(rng: np.random.Generator) -> None:
    paged = Paged(rng, [20, 70, 33], 1, 32, 16, "bfloat16")
    q = normal(rng, (3, 2, 32), BFLOAT16)
    expected = paged.run(q).tobytes()
    for order in "CF":
        wider = np.full((3, 11), -3, np.int32, order=order)
        wider[:, : paged.block_table.shape[1]] = paged.block_table
        assert ax.paged_attention(q, paged.cache, wider, paged.lengths).tobytes() == expected
    out = np.zeros_like(q)
    assert paged.run(q, out=out) is out
    assert out.tobytes() == expected
