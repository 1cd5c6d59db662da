# SPDX-License-Identifier: Apache-2.0
"""4-bit weights: what rounding costs, and that formats of checkpoints keep every integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibara_axion import int4
from capibara_axion.int4 import Int4Weight, layouts
from capibara_axion.int4.weight import quantize_by_threads


@st.composite
def weights(draw: st.DrawFn, smallest_zero: int = 0) -> Int4Weight:
    """Random integers in every group size; scales are float16."""
    group_size = draw(st.sampled_from([32, 64, 128, 24]))
    n, groups = 8 * draw(st.integers(1, 4)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return _weight(random, n, groups, group_size, smallest_zero)


def _weight(
    random: np.random.Generator, n: int, groups: int, group_size: int, smallest_zero: int = 0
) -> Int4Weight:
    return Int4Weight(
        random.integers(0, 16, (n, groups * group_size), np.uint8),
        random.uniform(0.001, 0.1, (n, groups)).astype(np.float16),
        random.integers(smallest_zero, 16, (n, groups), np.uint8),
    )


def _assert_same(one: Int4Weight, other: Int4Weight) -> None:
    for first, second in ((one.codes, other.codes), (one.zeros, other.zeros)):
        assert first is not None
        assert second is not None
        assert first.dtype == second.dtype == np.uint8
        assert first.flags.c_contiguous
        np.testing.assert_array_equal(first, second)
    assert one.scales.dtype == other.scales.dtype
    np.testing.assert_array_equal(one.scales, other.scales)


# ---------------------------------------------------------------- what goes in comes out


@given(weights())
def test_awq_keeps_every_integer(weight: Int4Weight) -> None:
    packed = int4.pack_awq(weight)
    n, k = weight.codes.shape
    assert packed["qweight"].shape == (k, n // 8)
    assert packed["qweight"].dtype == packed["qzeros"].dtype == np.int32
    _assert_same(int4.unpack_awq(**packed), weight)


@given(weights(smallest_zero=1), st.sampled_from([1, 2]), st.booleans())
def test_gptq_keeps_every_integer(weight: Int4Weight, version: int, ordered: bool) -> None:
    k = weight.codes.shape[1]
    order = np.random.default_rng(k).permutation(k) if ordered else None
    packed = int4.pack_gptq(weight, order, version=version)
    assert packed["qweight"].shape == (k // 8, len(weight.codes))
    unpacked, found = int4.unpack_gptq(**packed, version=version)
    # Within a group columns stand in the order of the file: their sum of products is the same.
    file_columns = np.arange(k) if order is None else order
    here = np.arange(k) if found is None else found
    columns = {feature: column for column, feature in enumerate(file_columns)}
    back = [columns[feature] for feature in here]
    np.testing.assert_array_equal(unpacked.codes, weight.codes[:, back])
    np.testing.assert_array_equal(unpacked.scales, weight.scales)
    np.testing.assert_array_equal(unpacked.zeros, weight.zeros)
    if not ordered:
        assert found is None


@given(weights(), st.booleans())
def test_compressed_tensors_keep_every_integer(weight: Int4Weight, symmetric: bool) -> None:
    if symmetric:
        weight = Int4Weight(weight.codes, weight.scales)
    packed = int4.pack_compressed(weight)
    assert ("weight_zero_point" in packed) is not symmetric
    unpacked = int4.unpack_compressed(**packed)
    if symmetric:
        assert unpacked.zeros is None
        np.testing.assert_array_equal(unpacked.codes, weight.codes)
    else:
        _assert_same(unpacked, weight)


# ---------------------------------------------------------------- which bit is whose


def _nibble(word: Any, place: int) -> int:
    return int(np.uint32(np.int64(word) & 0xFFFFFFFF) >> np.uint32(4 * place)) & 15


def test_awq_by_its_definition() -> None:
    weight = _weight(np.random.default_rng(1), 16, 2, 32)
    packed = int4.pack_awq(weight)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        for k, word in ((0, 0), (5, 1), (63, 1)):
            n = 8 * word + column
            assert _nibble(packed["qweight"][k, word], place) == weight.codes[n, k]
            assert weight.zeros is not None
            assert _nibble(packed["qzeros"][k // 32, word], place) == weight.zeros[n, k // 32]
            assert packed["scales"][k // 32, n] == weight.scales[n, k // 32]


@pytest.mark.parametrize(("version", "less"), [(1, 1), (2, 0)])
def test_gptq_by_its_definition(version: int, less: int) -> None:
    weight = _weight(np.random.default_rng(2), 16, 2, 32, smallest_zero=1)
    packed = int4.pack_gptq(weight, version=version)
    assert weight.zeros is not None
    for place in range(8):
        for n, row in ((0, 0), (3, 4), (15, 7)):
            assert _nibble(packed["qweight"][row, n], place) == weight.codes[n, 8 * row + place]
        for group, word in ((0, 0), (1, 1)):
            stored = _nibble(packed["qzeros"][group, word], place)
            assert stored == weight.zeros[8 * word + place, group] - less


def test_compressed_tensors_by_their_definition() -> None:
    weight = _weight(np.random.default_rng(3), 16, 2, 32)
    packed = int4.pack_compressed(weight)
    assert weight.zeros is not None
    assert packed["weight_shape"].tolist() == [16, 64]
    for place in range(8):
        for n, word in ((0, 0), (3, 4), (15, 7)):
            code = _nibble(packed["weight_packed"][n, word], place)
            assert code == weight.codes[n, 8 * word + place]
        for group, row in ((0, 0), (1, 1)):
            zero = _nibble(packed["weight_zero_point"][row, group], place)
            assert zero == weight.zeros[8 * row + place, group]


def test_act_order_means_the_weight_that_g_idx_says() -> None:
    random = np.random.default_rng(4)
    weight = _weight(random, 8, 3, 32, smallest_zero=1)
    g_idx = random.permutation(np.arange(96) // 32).astype(np.int32)
    packed = int4.pack_gptq(weight)  # its codes as they lie; groups as g_idx says
    unpacked, order = int4.unpack_gptq(packed["qweight"], packed["qzeros"], packed["scales"], g_idx)
    assert order is not None
    assert weight.zeros is not None
    zeros, scales = (x.astype(np.float32)[:, g_idx] for x in (weight.zeros, weight.scales))
    meant = ((weight.codes - zeros) * scales).astype(np.float64)
    x = random.standard_normal((5, 96))
    np.testing.assert_array_equal(unpacked.dequantize(), meant[:, order])
    np.testing.assert_allclose(x[:, order] @ unpacked.dequantize().T, x @ meant.T, rtol=1e-12)


def test_a_zero_of_16() -> None:
    """Which version 1 can hold, as 15."""
    weight = _weight(np.random.default_rng(5), 8, 1, 32)
    weight = Int4Weight(weight.codes, weight.scales, np.full((8, 1), 16, np.uint8))
    packed = int4.pack_gptq(weight)
    assert packed["qzeros"].tolist() == [[-1]]
    _assert_same(int4.unpack_gptq(**packed)[0], weight)
    with pytest.raises(ValueError, match="AWQ stores 0 to 15"):
        int4.pack_awq(weight)


def test_symmetric_gptq_ignores_zeros() -> None:
    weight = _weight(np.random.default_rng(5), 8, 1, 32, smallest_zero=1)
    packed = int4.pack_gptq(weight)
    unpacked, order = int4.unpack_gptq(packed["qweight"], None, packed["scales"], packed["g_idx"])
    assert unpacked.zeros is None
    assert order is None


# ---------------------------------------------------------------- refusals


def _gptq(**changes: Any) -> dict[str, Any]:
    return int4.pack_gptq(_weight(np.random.default_rng(6), 8, 2, 32, 1)) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": np.zeros((3, 1), np.int32)}, r"qzeros: expected shape \[2, 1\], got \[3, 1\]"),
        ({"g_idx": np.zeros(64, np.int32)}, "g_idx: expected 2 groups of 32 input features each"),
        ({"g_idx": np.full(64, 2, np.int32)}, "g_idx: expected groups from 0 to 1, got 2"),
        ({"scales": np.ones((3, 8), np.float16)}, "scales: expected groups that divide 64"),
        ({"scales": np.ones((2, 16), np.float16)}, r"qweight: expected shape \[8, 16\]"),
    ],
)
def test_gptq_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        int4.unpack_gptq(**_gptq(**changes))


def test_other_refusals() -> None:
    weight = _weight(np.random.default_rng(7), 8, 2, 32)
    awq = int4.pack_awq(weight)
    with pytest.raises(ValueError, match=r"qzeros: expected shape \[2, 1\], got \[1, 1\]"):
        int4.unpack_awq(**awq | {"qzeros": awq["qzeros"][:1]})
    compressed = int4.pack_compressed(weight)
    with pytest.raises(ValueError, match=r"weight_shape: expected \[8, 64\], got \[8, 60\]"):
        int4.unpack_compressed(**compressed | {"weight_shape": np.array([8, 60])})
    for zero, version in ((0, 1), (16, 2)):
        zeros = np.full((8, 2), zero, np.uint8)
        with pytest.raises(ValueError, match=f"zeros: version {version} stores"):
            int4.pack_gptq(Int4Weight(weight.codes, weight.scales, zeros), version=version)
    odd = Int4Weight(np.zeros((9, 32), np.uint8), np.ones((9, 1), np.float16))
    with pytest.raises(ValueError, match="weight: expected a multiple of 8, got 9"):
        int4.pack_awq(odd)


# ---------------------------------------------------------------- rounding


@given(
    st.sampled_from([32, 64, 128]),
    st.booleans(),
    st.floats(-12, 4),
    st.integers(0, 2**32 - 1),
)
def test_every_value_is_rounded_to_the_nearest_step(
    group_size: int, symmetric: bool, magnitude: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_t(3, (6, 2 * group_size)) * 2.0**magnitude
    weight = (weight + random.uniform(-3, 3) * 2.0**magnitude).astype(np.float32)
    rounded = int4.quantize(weight, group_size, symmetric=symmetric)
    steps = np.repeat(rounded.scales.astype(np.float32), group_size, axis=1)
    # Half a step, and at the range's ends what rounding the scale (2^-9 and float16's 2^-25) and
    # the zero point (half a step) has moved them by.
    ends = 15 * (steps * 2.0**-8 + 2.0**-24) + 0.5 * steps
    error = np.abs(rounded.dequantize() - weight)
    assert (error <= 0.5 * steps + ends).all()
    inside = (rounded.codes > 0) & (rounded.codes < 15)
    assert (error[inside] <= 0.5001 * steps[inside]).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_stays_zero(symmetric: bool) -> None:
    weight = np.random.default_rng(8).uniform(1, 2, (3, 64)).astype(np.float32)
    weight[:, ::5] = 0
    rounded = int4.quantize(weight, 32, symmetric=symmetric).dequantize()
    assert (rounded[:, ::5] == 0).all()
    assert (int4.quantize(np.zeros((2, 32), np.float32), 32).dequantize() == 0).all()


@given(st.floats(1e-6, 3e5))
def test_scales_are_exact_in_bfloat16(largest: float) -> None:
    weight = np.linspace(-largest, largest, 32, dtype=np.float32)[None]
    (scale,) = int4.quantize(weight, 32).scales[0].astype(np.float32)
    bits = np.float32(scale).view(np.uint32)
    assert bits & 0xFFFF == 0


def test_symmetric_steps_span_both_sides() -> None:
    weight = np.linspace(-7.5, 7.5, 32, dtype=np.float32)[None]
    rounded = int4.quantize(weight, 32, symmetric=True)
    assert rounded.zeros is None
    assert (rounded.codes.min(), rounded.codes.max()) == (0, 15)


def test_pieces_are_as_the_whole() -> None:
    weight = np.random.default_rng(9).standard_normal((500, 640)).astype(np.float32)
    for symmetric in (False, True):
        whole = int4.quantize(weight, 128, symmetric=symmetric)
        pieces = quantize_by_threads(weight, 128, symmetric=symmetric)
        np.testing.assert_array_equal(pieces.codes, whole.codes)
        np.testing.assert_array_equal(pieces.scales, whole.scales)
        np.testing.assert_array_equal(pieces.zeros, whole.zeros)


@pytest.mark.parametrize(
    ("weight", "group_size", "message"),
    [
        (np.ones((2, 96)), 48, "group_size: expected 32, 64, 128 or all 96 columns, got 48"),
        (np.ones((2, 96)), 64, "group_size: expected a divisor of 96 columns, got 64"),
        (np.full((2, 32), np.nan), 32, "weight: expected finite values"),
        (np.full((2, 32), 1e30), 32, "weight: expected finite values"),
    ],
)
def test_what_cannot_be_rounded(weight: np.ndarray, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        int4.quantize(weight.astype(np.float32), group_size)


def test_words() -> None:
    words = np.array([[0x76543210, -1]], np.int32)
    codes = layouts.unpack_words(words)
    assert codes.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7] + [15] * 8]
    np.testing.assert_array_equal(layouts.pack_words(codes), words)
