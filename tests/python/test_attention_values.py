# SPDX-License-Identifier: Apache-2.0
"""Attention against float64, by derived tolerances; what changes no bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tolerances
from attention_cases import HALF_ULP, Paged, check, dense, expect, some, starts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import BFLOAT16, DTYPES, FLOAT32, normal, wide
from products import EMULATED
from tolerances import U

import capibara_axion as ax
from capibara_axion import reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 256, 512)
HEADS = ((1, 1), (4, 4), (6, 2), (8, 1), (5, 5), (7, 1))  # of queries, of keys
EXAMPLES = 8 if EMULATED else 40


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    ax.set_num_threads(0)


@each_dtype
@pytest.mark.parametrize("head_dim", some(HEAD_DIMS))
def test_every_head_size(rng: np.random.Generator, dtype: np.dtype, head_dim: int) -> None:
    for queries, keys in ((1, 75), (37, 37), (5, 150)):
        check(*dense(rng, (2, queries, keys, 4, 2, head_dim), dtype))


@each_dtype
@pytest.mark.parametrize("head_dim", some([16, 48, 144, 208, 496]))
def test_head_sizes_between(rng: np.random.Generator, dtype: np.dtype, head_dim: int) -> None:
    check(*dense(rng, (1, 9, 50, 2, 1, head_dim), dtype))


@each_dtype
@pytest.mark.parametrize("heads", some(HEADS), ids=str)
def test_groups_of_heads(rng: np.random.Generator, dtype: np.dtype, heads: tuple[int, int]) -> None:
    for queries, keys in ((1, 33), (19, 40)):
        check(*dense(rng, (2, queries, keys, *heads, 32), dtype))


@each_dtype
def test_every_length(rng: np.random.Generator, dtype: np.dtype) -> None:
    """Around the units that keys and queries are taken in."""
    for keys in (*range(1, 36, 3 if EMULATED else 1), 63, 64, 65, 127, 128, 129):
        for queries in {1, min(2, keys), keys}:
            check(*dense(rng, (1, queries, keys, 2, 1, 32), dtype))


@each_dtype
def test_many_keys(rng: np.random.Generator, dtype: np.dtype) -> None:
    """Several blocks of them, several parts for the threads."""
    longest = 700 if EMULATED else 4500
    for queries, keys in ((1, longest), (3, longest // 2), (200, 600)):
        check(*dense(rng, (1, queries, keys, 4, 1, 64), dtype))


@each_dtype
def test_typical_errors(rng: np.random.Generator, dtype: np.dtype) -> None:
    """Where the bounds have the worst case. Two roundings to 16 bits, of exponentials and result,
    each of 0.41 half units on average (RMS), make 0.58; float32's sums add up like sqrt(D)."""
    for dim, keys in ((32, 40), (128, 200), (64, 300 if EMULATED else 2000)):
        q, k, v = dense(rng, (1, 40, keys, 4, 2, dim), dtype)
        exact = reference.flash_attention(wide(q), k, v)
        error = wide(ax.flash_attention(q, k, v)) - exact
        expected = (8 + dim**0.5) * U if dtype == FLOAT32 else 0.65 * HALF_ULP[dtype.name]
        assert np.sqrt(np.mean(error**2) / np.mean(exact**2)) < expected


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(0, 40),
    keys=st.integers(0, 90),
    heads=st.sampled_from(HEADS),
    head_dim=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    window=st.one_of(
        st.none(), st.integers(1, 60), st.tuples(st.integers(-1, 60), st.integers(-1, 60))
    ),
    softcap=st.sampled_from([0.0, 0.0, 2.0, 30.0]),
    scale=st.sampled_from([None, None, 0.0, 0.3125]),
    with_slopes=st.booleans(),
    with_sinks=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any(
    batch: int,
    queries: int,
    keys: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: np.dtype,
    causal: bool,
    window: int | tuple[int, int] | None,
    softcap: float,
    scale: float | None,
    with_slopes: bool,
    with_sinks: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = dense(rng, (batch, queries, keys, *heads, 16 * head_dim), dtype)
    options = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
    if with_slopes:
        options["alibi_slopes"] = rng.uniform(0, 0.5, heads[0]).astype(np.float32)
    if with_sinks:
        options["sinks"] = normal(rng, (heads[0],), FLOAT32)
    check(q, k, v, f"{options}", **options)


@each_dtype
def test_sequences_of_any_lengths(rng: np.random.Generator, dtype: np.dtype) -> None:
    queries, keys = [3, 0, 17, 1, 40, 5], [8, 4, 17, 70, 41, 0]
    q = normal(rng, (sum(queries), 4, 64), dtype)
    k, v = (normal(rng, (sum(keys), 2, 64), dtype) for _ in range(2))
    check(q, k, v, query_start=starts_of(queries), key_start=starts_of(keys))
    check(q, k, v, query_start=starts_of(queries), key_start=starts_of(keys), causal=False)
    k, v = (normal(rng, (sum(queries), 2, 64), dtype) for _ in range(2))
    check(q, k, v, query_start=starts_of(queries))


@each_dtype
def test_slices_of_one_tensor(rng: np.random.Generator, dtype: np.dtype) -> None:
    """q, k and v of a fused qkv are read where they lie, to the same bits as copies."""
    qkv = normal(rng, (2, 21, (4 + 2 + 2) * 64), dtype)
    parts = np.split(qkv, [256, 384], axis=-1)
    q, k, v = (part.reshape(2, 21, -1, 64) for part in parts)
    assert all(np.shares_memory(part, qkv) for part in (q, k, v))
    copies = [np.array(part, order="C") for part in (q, k, v)]
    assert check(q, k, v).tobytes() == ax.flash_attention(*copies).tobytes()
    starts = starts_of([21, 21])
    flat = [part.reshape(42, -1, 64) for part in (q, k, v)]
    given_starts = ax.flash_attention(*flat, query_start=starts)
    assert given_starts.tobytes() == ax.flash_attention(*copies).tobytes()


@each_dtype
def test_other_layouts(rng: np.random.Generator, dtype: np.dtype) -> None:
    q, k, v = dense(rng, (3, 7, 19, 4, 2, 32), dtype)
    expected = check(q, k, v).tobytes()

    def heads_first(x: np.ndarray) -> np.ndarray:
        return np.array(x.transpose(0, 2, 1, 3), order="C").transpose(0, 2, 1, 3)

    def padded(x: np.ndarray) -> np.ndarray:
        wider = np.zeros((x.shape[0], x.shape[1] + 3, x.shape[2], x.shape[3] + 5), dtype)
        wider[:, : x.shape[1], :, : x.shape[3]] = x
        return wider[:, : x.shape[1], :, : x.shape[3]]

    def backwards(x: np.ndarray) -> np.ndarray:
        return np.array(x[::-1, ::-1, ::-1, ::-1], order="C")[::-1, ::-1, ::-1, ::-1]

    layouts = (heads_first, padded, backwards, lambda x: x)
    for of_q in layouts:
        for of_k in layouts:
            for of_v in layouts:
                result = ax.flash_attention(of_q(q), of_k(k), of_v(v))
                assert result.tobytes() == expected
    out = np.full((3, 7, 4, 40), 9, dtype)
    assert ax.flash_attention(q, k, v, out=out[..., :32]).base is out
    assert out[..., :32].tobytes() == expected
    assert (out[..., 32:] == 9).all()
    # One query or key a sequence: the stride from one to the next is free.
    one = padded(q[:, :1])
    copy = np.array(one, order="C")
    assert ax.flash_attention(one, k, v).tobytes() == ax.flash_attention(copy, k, v).tobytes()
    same = np.broadcast_to(k[:1], k.shape)
    copy = np.array(same, order="C")
    assert ax.flash_attention(q, same, v).tobytes() == ax.flash_attention(q, copy, v).tobytes()


@pytest.mark.parametrize(
    ("queries", "keys"), [([1] * 5, [300, 20, 3000, 1, 700]), ([40, 1, 90], [400, 900, 90])]
)
@each_dtype
def test_no_bit_depends_on_the_number_of_threads(
    rng: np.random.Generator, dtype: np.dtype, queries: list[int], keys: list[int]
) -> None:
    if EMULATED:
        keys = [max(own, n // 4) for own, n in zip(queries, keys, strict=True)]
    paged = Paged(rng, keys, 2, 64, 32, dtype.name)
    q, starts = normal(rng, (sum(queries), 8, 64), dtype), starts_of(queries)
    k, v = paged.cache.gather(paged.slots)
    results, of_dense = set(), set()
    for threads in (1, 2, 3, 5):
        ax.set_num_threads(threads)
        results.add(paged.run(q, starts).tobytes())
        of_dense.add(
            ax.flash_attention(q, k, v, query_start=starts, key_start=paged.key_start).tobytes()
        )
    assert len(results) == 1
    assert len(of_dense) == 1


@pytest.mark.parametrize("threads", [1, 3])
@each_dtype
def test_no_bit_depends_on_the_batch(
    rng: np.random.Generator, dtype: np.dtype, threads: int
) -> None:
    ax.set_num_threads(threads)
    queries, keys = [1, 30, 1, 0, 7], [900, 30, 17, 5, 260]
    if EMULATED:
        keys[0] = 300
    starts = starts_of(queries)
    paged = Paged(rng, keys, 2, 64, 48, dtype.name)
    q = normal(rng, (sum(queries), 6, 64), dtype)
    together = paged.run(q, starts)
    k, v = paged.cache.gather(paged.slots)
    of_dense = ax.flash_attention(q, k, v, query_start=starts, key_start=paged.key_start)
    for s in range(len(queries)):
        rows = slice(starts[s], starts[s + 1])
        one = np.array([0, queries[s]], np.int32)
        alone = ax.paged_attention(
            q[rows],
            paged.cache,
            paged.block_table[s : s + 1],
            paged.lengths[s : s + 1],
            query_start=one,
        )
        assert alone.tobytes() == together[rows].tobytes()
        own = slice(paged.key_start[s], paged.key_start[s + 1])
        alone = ax.flash_attention(q[rows][None], k[own][None], v[own][None])[0]
        assert alone.tobytes() == of_dense[rows].tobytes()


@each_dtype
def test_nothing_at_all(dtype: np.dtype) -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype)

    assert ax.flash_attention(zeros(0, 5, 4, 32), zeros(0, 6, 2, 32), zeros(0, 6, 2, 32)).size == 0
    assert ax.flash_attention(zeros(2, 0, 4, 32), zeros(2, 6, 2, 32), zeros(2, 6, 2, 32)).size == 0
    q = np.ones((2, 3, 4, 32), dtype)
    for causal in (False, True):
        result = ax.flash_attention(q, zeros(2, 0, 2, 32), zeros(2, 0, 2, 32), causal=causal)
        assert (result == 0).all()
    starts = np.zeros(1, np.int32)
    empty = zeros(0, 4, 32)
    assert ax.flash_attention(empty, empty, empty, query_start=starts).shape == (0, 4, 32)
    starts = np.zeros(4, np.int32)
    assert ax.flash_attention(empty, empty, empty, query_start=starts).shape == (0, 4, 32)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@each_dtype
def test_special_values(rng: np.random.Generator, dtype: np.dtype, special: float) -> None:
    """In q, k or v. What a query does not see changes nothing of it, except that such a value may
    make NaN of the same element of the result."""
    for which in range(3):
        for causal in (False, True):
            arrays = dense(rng, (1, 40, 40, 2, 2, 32), dtype)
            plain = ax.flash_attention(*arrays, causal=causal)
            arrays[which][0, 25, 1, 7] = special
            exact, bound = expect(*arrays, causal=causal)
            result = ax.flash_attention(*arrays, causal=causal)
            unseen = (0, slice(0, 25), 1) if causal else (0, slice(None), 0)
            if which == 2 and causal:
                for array in (result, exact):
                    array[0, :25, 1, 7] = plain[0, :25, 1, 7]
            assert result[unseen].tobytes() == plain[unseen].tobytes()
            tolerances.assert_within(result, exact, bound, f"{which} {causal}")


def test_large_logits(rng: np.random.Generator) -> None:
    """Softmax of what exp alone could not hold: the largest wins."""
    q, k, v = dense(rng, (1, 3, 50, 1, 1, 64), BFLOAT16)
    best = [7, 31, 46]
    k[0, best] = q[0]
    result = ax.flash_attention(q * BFLOAT16.type(1000), k, v, causal=False)
    assert (result[0, :, 0] == v[0, best, 0]).all()
