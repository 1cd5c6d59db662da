# SPDX-License-Identifier: Apache-2.0
"""What attention's queries see, and what is done to their logits."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import Paged, check, dense, some, starts_of
from operators import BFLOAT16, DTYPES, FLOAT32, normal
from products import EMULATED

import capibara_axion as ax
from capibara_axion.reference_attention import visible_keys

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
WINDOWS = (1, 2, 16, 17, 64, 100, (0, 0), (5, -1), (-1, 5), (3, 20), (-1, -1), (200, 200))


def seen(queries: int, keys: int, **options) -> np.ndarray:
    """Which keys each query sees, as attention itself shows: value j is the j-th unit vector."""
    size = -(-keys // 16) * 16
    q = np.zeros((1, queries, 1, size), np.float32)
    k = np.zeros((1, keys, 1, size), np.float32)
    v = np.eye(keys, size, dtype=np.float32)[None, :, None]
    return ax.flash_attention(q, k, v, **options)[0, :, 0, :keys] != 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, *some(WINDOWS)], ids=str)
def test_every_pair(causal: bool, window: int | tuple[int, int] | None) -> None:
    sizes = ((1, 1), (1, 70), (70, 70), (33, 150), (5, 3), (40, 17), (130, 200))
    for queries, keys in sizes[: 4 if EMULATED else None]:
        options = {"causal": causal, "window": window}
        assert (seen(queries, keys, **options) == visible_keys(queries, keys, **options)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 9, (4, 0), (0, 6)], ids=str)
def test_every_pair_of_ranges(causal: bool, window: int | tuple[int, int] | None) -> None:
    for queries, keys, ranges in (
        (70, 70, [(0, 3, 9), (0, 9, 10), (0, 30, 68)]),
        (20, 70, [(0, 40, 55), (0, 60, 70)]),
        (150, 150, [(0, 0, 140)]),
        (1, 30, [(0, 28, 30)]),
    ):
        options = {"causal": causal, "window": window, "ranges": np.array(ranges, np.int32)}
        assert (seen(queries, keys, **options) == visible_keys(queries, keys, **options)).all()


def test_a_window_is_that_of_mistral() -> None:
    """Query i sees its own key and the w - 1 before it."""
    assert (seen(6, 6, window=3).sum(axis=-1) == [1, 2, 3, 3, 3, 3]).all()
    assert (seen(6, 6, window=3) == seen(6, 6, window=(2, 0))).all()
    assert (seen(6, 6, window=3, causal=False) == seen(6, 6, window=(2, -1), causal=False)).all()


@each_dtype
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", some(WINDOWS), ids=str)
def test_windows(
    rng: np.random.Generator,
    dtype: np.dtype,
    causal: bool,
    window: int | tuple[int, int],
) -> None:
    for queries, keys in ((1, 150), (40, 130)):
        check(*dense(rng, (1, queries, keys, 4, 2, 32), dtype), causal=causal, window=window)


def test_a_window_over_many_keys(rng: np.random.Generator) -> None:
    keys = 600 if EMULATED else 5000
    q, k, v = dense(rng, (1, 3, keys, 4, 2, 64), BFLOAT16)
    result = check(q, k, v, window=100)
    # Whatever lies before does not matter.
    k[:, : keys - 103], v[:, : keys - 103] = np.nan, 1e30
    assert ax.flash_attention(q, k, v, window=100).tobytes() == result.tobytes()


@each_dtype
def test_ranges(rng: np.random.Generator, dtype: np.dtype) -> None:
    queries, keys = [20, 50, 9], [60, 50, 40]
    q = normal(rng, (sum(queries), 4, 32), dtype)
    k, v = (normal(rng, (sum(keys), 2, 32), dtype) for _ in range(2))
    ranges = np.array([(0, 50, 60), (1, 0, 7), (1, 7, 20), (1, 33, 50)], np.int32)
    for window in (None, 5):
        check(
            q,
            k,
            v,
            window=window,
            ranges=ranges,
            query_start=starts_of(queries),
            key_start=starts_of(keys),
        )


@each_dtype
@pytest.mark.parametrize("softcap", [0.5, 15.0, 50.0])
def test_softcap(rng: np.random.Generator, dtype: np.dtype, softcap: float) -> None:
    for shape in ((1, 1, 70, 4, 2, 32), (1, 33, 70, 2, 2, 64)):
        q, k, v = dense(rng, shape, dtype)
        check(q * dtype.type(4), k, v, softcap=softcap)


@each_dtype
def test_alibi(rng: np.random.Generator, dtype: np.dtype) -> None:
    slopes = (2.0 ** -np.arange(1, 9)).astype(np.float32)
    for queries, keys in ((1, 300), (40, 40), (7, 130)):
        arrays = dense(rng, (1, queries, keys, 8, 2, 32), dtype)
        check(*arrays, alibi_slopes=slopes)
        check(*arrays, alibi_slopes=slopes, causal=False, softcap=20.0)
    exact = ax.flash_attention(*arrays, alibi_slopes=slopes)
    for own in DTYPES:  # all hold powers of two
        given = ax.flash_attention(*arrays, alibi_slopes=slopes.astype(own))
        assert given.tobytes() == exact.tobytes()


@each_dtype
def test_sinks(rng: np.random.Generator, dtype: np.dtype) -> None:
    sinks = np.array([-100, -1, 0, 3, 40, 1e30, -np.inf, np.inf], np.float32)
    for queries, keys in ((1, 60), (37, 37), (3, 300)):
        check(*dense(rng, (2, queries, keys, 8, 4, 32), dtype), sinks=sinks)
    arrays = dense(rng, (1, 5, 9, 8, 2, 32), dtype)
    result = ax.flash_attention(*arrays, sinks=sinks)
    assert (result[:, :, 5] == 0).all(), "a large sink takes everything"
    plain = ax.flash_attention(*arrays)
    assert result[:, :, 6].tobytes() == plain[:, :, 6].tobytes(), "one of -infinity nothing"
    assert np.isnan(result[:, :, 7]).all()


def test_a_query_that_sees_nothing_gives_zeros(rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        q, k, v = dense(rng, (1, 30, 12, 2, 1, 32), dtype)
        for options in ({}, {"sinks": np.zeros(2, np.float32)}):
            result = check(q, k, v, **options)
            assert (result[:, :18] == 0).all()
            assert (result[:, 18:] != 0).any(axis=-1).all()


@pytest.mark.parametrize("window", [None, 20])
def test_all_at_once_and_paged(rng: np.random.Generator, window: int | None) -> None:
    queries, keys = [1, 25, 3], [90, 25, 64]
    starts = starts_of(queries)
    ranges = np.array([(1, 4, 12), (2, 61, 64)], np.int32)
    for dtype in DTYPES:
        paged = Paged(rng, keys, 2, 64, 16, dtype.name)
        paged.check(
            normal(rng, (sum(queries), 4, 64), dtype),
            starts,
            window=window,
            softcap=30.0,
            scale=0.25,
            alibi_slopes=rng.uniform(0, 0.1, 4).astype(np.float32),
            sinks=normal(rng, (4,), FLOAT32),
            ranges=ranges,
        )
