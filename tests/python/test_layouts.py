# SPDX-License-Identifier: Apache-2.0
"""Where an argument lies in memory changes nothing in the result: kernels follow its strides, or
it is copied; what is written is written where it belongs, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from operators import BFLOAT16, DTYPES, FLOAT32, OPERATORS, Array, Variant, call_gated, normal
from products import PRODUCTS

import capibara_axion as ax

COLS = 37
BITS = {2: np.uint16, 4: np.uint32}

# Element for element the given array, but elsewhere. Kernels follow these strides:
FOLLOWED: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda a: a,
    "columns of a wider array": lambda a: _inside(a, (1, 1)),
    "rows apart": lambda a: _inside(a, (0, 0), rows=2),
    "rows upside down": lambda a: _copied(a[::-1])[::-1],
    "leading dimensions swapped": lambda a: (
        _copied(a.swapaxes(0, 1)).swapaxes(0, 1) if a.ndim > 2 else a
    ),
    "another alignment": lambda a: _inside(a, (3, 2)),
}
# These they do not follow: an input is copied, a result refused.
NOT_FOLLOWED: dict[str, Callable[[Array], Array]] = {
    "every second column": lambda a: _every_second(a),
    "columns reversed": lambda a: _copied(a[..., ::-1])[..., ::-1],
    "Fortran order": lambda a: np.asfortranarray(a),
    "misaligned": lambda a: _misaligned(a),
    "a field of a structured array": lambda a: _field(a),
}


def _copied(a: Array) -> Array:
    return np.array(a, order="C")


def _inside(a: Array, margins: tuple[int, int], rows: int = 1) -> Array:
    before, after = margins
    wider = before + a.shape[-1] + after
    shape = (rows * a.shape[0], *a.shape[1:-1], wider) if a.ndim > 1 else (wider,)
    view = np.full(shape, 7, a.dtype)[..., before : before + a.shape[-1]]
    view = view[::rows] if a.ndim > 1 else view
    view[...] = a
    return view


def _every_second(a: Array) -> Array:
    view = np.full((*a.shape[:-1], 2 * a.shape[-1]), 7, a.dtype)[..., ::2]
    view[...] = a
    return view


def _misaligned(a: Array) -> Array:
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = np.ndarray(a.shape, a.dtype, buffer=memory.data)
    view[...] = a
    return view


def _field(a: Array) -> Array:
    view = np.zeros(a.shape, [("tag", np.uint8), ("value", a.dtype)])["value"]
    view[...] = a
    return view


def same_bits(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = BITS[a.dtype.itemsize]
    return bool((_copied(a).view(bits) == _copied(b).view(bits)).all())


def arrays_of(arguments: dict[str, Any]) -> list[str]:
    return [name for name, value in arguments.items() if isinstance(value, np.ndarray)]


each_operator = pytest.mark.parametrize("operator", [*OPERATORS, *PRODUCTS], ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


@each_operator
@each_dtype
def test_inputs(rng: np.random.Generator, operator: Variant, dtype: np.dtype) -> None:
    arguments = operator.make(rng, 5, COLS, dtype)
    expected = operator.run(copy.deepcopy(arguments))
    for name in arrays_of(arguments):
        for layout, move in (FOLLOWED | NOT_FOLLOWED).items():
            given = copy.deepcopy(arguments)
            given[name] = moved = move(given[name])
            before = _copied(moved)
            if name in operator.in_place and layout in NOT_FOLLOWED:
                with pytest.raises(ValueError, match=rf"^{name}: expected a last dimension"):
                    operator.run(given)
                assert (before == moved).all(), f"{name}: {layout} was written"
                continue
            results = operator.run(given)
            for result, right in zip(results, expected, strict=True):
                assert same_bits(result, right), f"{name}: {layout}"
            if name in operator.in_place:
                assert any(result is moved for result in results), f"{name}: {layout}"
            else:
                assert (before == moved).all(), f"{name}: {layout} was written"


@each_operator
def test_read_only(rng: np.random.Generator, operator: Variant) -> None:
    arguments = operator.make(rng, 3, COLS, FLOAT32)
    for name in arrays_of(arguments):
        given = copy.deepcopy(arguments)
        given[name].flags.writeable = False
        if name in operator.in_place:
            with pytest.raises(ValueError, match=rf"^{name}: expected a writable array"):
                operator.run(given)
        else:
            operator.run(given)


# The operators with `out`: (x, what else they need) -> result.
Call = Callable[..., Array]
WEIGHT = np.linspace(-1, 2, COLS).astype(np.float32)
WITH_OUT: dict[str, Call] = {
    "rms_norm": lambda x, **out: ax.rms_norm(x, WEIGHT, **out),
    "layer_norm": lambda x, **out: ax.layer_norm(x, WEIGHT, **out),
    "softmax": lambda x, **out: ax.softmax(x, 0.5, **out),
    "silu_and_mul": lambda x, **out: ax.silu_and_mul(x, x[::-1], **out),
    "gelu_and_mul": lambda x, **out: ax.gelu_and_mul(x, x[::-1], **out),
    "gelu_tanh_and_mul": lambda x, **out: ax.gelu_and_mul(x, x[::-1], "tanh", **out),
}
each_with_out = pytest.mark.parametrize("call", WITH_OUT.values(), ids=WITH_OUT)


@each_with_out
@each_dtype
def test_out(rng: np.random.Generator, call: Call, dtype: np.dtype) -> None:
    x = normal(rng, (4, 3, COLS), dtype)
    expected = call(x)
    assert expected.flags.c_contiguous
    for layout, move in FOLLOWED.items():
        out = move(np.zeros_like(x))
        memory = out if out.base is None else out.base
        beside = np.count_nonzero(memory == 7)
        assert call(x, out=out) is out, layout
        assert same_bits(out, expected), layout
        assert np.count_nonzero(memory == 7) == beside, f"{layout}: written beside the result"
    for layout, move in NOT_FOLLOWED.items():
        out = move(np.zeros_like(x))
        with pytest.raises(ValueError, match=r"^out: expected a last dimension of stride 1"):
            call(x, out=out)
        assert not out.any(), layout


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "softmax"])
@each_dtype
def test_out_may_be_the_input(rng: np.random.Generator, op: str, dtype: np.dtype) -> None:
    x = normal(rng, (6, COLS), dtype)
    expected = WITH_OUT[op](x)
    assert same_bits(WITH_OUT[op](x, out=x), expected)


@pytest.mark.parametrize("op", ["silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"])
@each_dtype
def test_gated_out_may_be_gate_or_up(rng: np.random.Generator, op: str, dtype: np.dtype) -> None:
    packed = normal(rng, (6, 2 * COLS), dtype)
    expected = call_gated(ax, op, packed)
    for columns in (slice(0, COLS), slice(COLS, None)):
        whole = packed.copy()
        assert same_bits(call_gated(ax, op, whole, out=whole[:, columns]), expected)
        gate, up = packed[:, :COLS].copy(), packed[:, COLS:].copy()
        out = gate if columns.start == 0 else up
        assert call_gated(ax, op, gate, up, out=out) is out
        assert same_bits(out, expected)
    same = packed[:, :COLS].copy()
    squared = call_gated(ax, op, same, same)
    assert same_bits(squared, call_gated(ax, op, same, same.copy()))
    assert same_bits(call_gated(ax, op, same, same, out=same), squared)


def test_partial_overlaps_are_refused() -> None:
    memory = np.zeros((9, 3 * COLS), np.float32)
    x = memory[:8, :COLS]
    for out in (memory[1:, :COLS], memory[:8, 1 : COLS + 1], memory[:8, COLS - 1 : 2 * COLS - 1]):
        for call in WITH_OUT.values():
            with pytest.raises(ValueError, match=r"^out: expected memory apart"):
                call(x, out=out)
    packed = memory[:8, : 2 * COLS]
    with pytest.raises(ValueError, match=r"^out: expected memory apart"):
        ax.silu_and_mul(packed, out=packed[:, 1 : COLS + 1])
    weight = memory[8, :COLS]
    with pytest.raises(ValueError, match=r"^out: expected memory apart from weight"):
        ax.rms_norm(memory[:8, :COLS].copy(), weight, out=memory[1:, :COLS])
    with pytest.raises(ValueError, match=r"^residual: expected memory apart from x"):
        ax.fused_add_rms_norm(x, memory[1:, :COLS], np.ones(COLS, np.float32))


def test_neighbouring_columns_do_not_overlap() -> None:
    """q, k and v within one row, say: their extents interleave, their elements do not."""
    memory = np.linspace(-1, 1, 8 * 3 * COLS).astype(np.float32).reshape(8, 3 * COLS)
    x, out = memory[:, :COLS], memory[:, 2 * COLS :]
    expected = ax.softmax(x.copy())
    middle = memory[:, COLS : 2 * COLS].copy()
    ax.softmax(x, out=out)
    assert same_bits(out, expected)
    assert same_bits(memory[:, COLS : 2 * COLS], middle)


@pytest.mark.parametrize("call", WITH_OUT.values(), ids=WITH_OUT)
def test_broadcast(call: Call) -> None:
    """An input may repeat its rows; a result may not."""
    row = np.linspace(-1, 1, COLS).astype(np.float32)
    x = np.broadcast_to(row, (5, COLS))
    assert same_bits(call(x), call(x.copy()))
    with pytest.raises(ValueError, match=r"^out: expected elements that do not overlap"):
        call(x.copy(), out=as_strided(row.copy(), (5, COLS), (0, 4)))


def test_lengths_and_positions_may_be_strided(rng: np.random.Generator) -> None:
    x, lengths = normal(rng, (6, 9), FLOAT32), np.arange(12, dtype=np.int64)[::2] % 10
    assert same_bits(ax.softmax(x, lengths=lengths), ax.softmax(x, lengths=lengths.copy()))
    q = normal(rng, (6, 2, 8), FLOAT32)
    cache, turned, expected = normal(rng, (10, 16), FLOAT32)[:, ::2], q.copy(), q.copy()
    ax.rope(turned, None, cache, lengths % 10)
    ax.rope(expected, None, cache.copy(), (lengths % 10).copy())
    assert same_bits(turned, expected)


@each_dtype
@pytest.mark.parametrize("neox", [True, False], ids=["neox", "interleaved"])
def test_rope_within_a_fused_qkv(rng: np.random.Generator, dtype: np.dtype, neox: bool) -> None:
    tokens, q_heads, k_heads, size, rotary_dim = 7, 4, 2, 20, 12
    qkv = normal(rng, (tokens, (q_heads + 2 * k_heads) * size), dtype)
    before = qkv.copy()
    ends = q_heads * size, (q_heads + k_heads) * size
    q, k, v = np.split(qkv, ends, axis=1)
    cache, positions = normal(rng, (32, rotary_dim), dtype), rng.integers(0, 32, tokens)
    expected_q, expected_k = (x.copy().reshape(tokens, -1, size) for x in (q, k))
    ax.rope(expected_q, expected_k, cache, positions, neox=neox)
    ax.rope(q, k, cache, positions, head_dim=size, neox=neox)
    assert same_bits(q.reshape(expected_q.shape), expected_q)
    assert same_bits(k.reshape(expected_k.shape), expected_k)
    assert same_bits(v, before[:, ends[1] :])
    unturned = np.s_[..., rotary_dim:]
    assert same_bits(expected_q[unturned], before.reshape(tokens, -1, size)[:, :q_heads][unturned])
    # One of both in three dimensions, the heads at a stride of their own.
    qkv[...] = before
    ax.rope(q.reshape(tokens, q_heads, size), k, cache, positions, head_dim=size, neox=neox)
    assert same_bits(k.reshape(expected_k.shape), expected_k)


def test_other_numpy_types() -> None:
    """Subclasses and the byte order written out are the same arrays."""
    x, weight = np.linspace(-1, 1, 12).astype(np.float32).reshape(3, 4), np.ones(4, np.float32)
    expected = ax.rms_norm(x, weight)
    little = "<f4" if np.little_endian else ">f4"
    assert same_bits(ax.rms_norm(x.astype(little), weight), expected)
    assert same_bits(ax.rms_norm(x.view(np.recarray), weight).view(np.ndarray), expected)
    assert same_bits(ax.rms_norm(np.ma.array(x), weight), expected)


@st.composite
def strided_views(draw: st.DrawFn) -> Array:
    """Any slice of any array, leading dimensions in any order, last dimension of any step."""
    dims = draw(st.integers(1, 5))
    shape = [draw(st.integers(1, 4)) for _ in range(dims - 1)] + [2 * draw(st.integers(1, 12))]
    dtype = draw(st.sampled_from(DTYPES))
    values = np.random.default_rng(draw(st.integers(0, 2**16))).standard_normal(shape)
    base = values.astype(dtype)
    order = draw(st.permutations(range(dims - 1)))
    view = base.transpose(*order, dims - 1)
    steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(dims - 1)]
    last = draw(st.sampled_from([1, 1, 1, 2, -1]))
    view = view[tuple(slice(None, None, step) for step in (*steps, last))]
    return view[..., : view.shape[-1] // 2 * 2]


@settings(max_examples=150, deadline=None)
@given(x=strided_views(), data=st.data())
def test_any_strides(x: Array, data: st.DataObject) -> None:
    dense = _copied(x)
    weight = np.linspace(-1, 1, x.shape[-1]).astype(np.float32)
    lengths = np.array(data.draw(st.integers(0, x.shape[-1])))
    calls: list[Callable[[Array], Array]] = [
        lambda a: ax.rms_norm(a, weight),
        lambda a: ax.layer_norm(a, weight),
        lambda a: ax.softmax(a, 0.25, lengths),
        lambda a: ax.silu_and_mul(a),
        lambda a: ax.gelu_and_mul(a, a, "tanh"),
    ]
    for call in calls:
        assert same_bits(call(x), call(dense))
    assert same_bits(x, dense)
    # Into a result of these very strides, if kernels can follow them.
    out = np.zeros_like(x) if data.draw(st.booleans()) else x.copy(order="K")
    refused = ""
    try:
        ax.softmax(x, out=out)
    except ValueError as error:
        refused = str(error)
    assert refused.startswith("out: ") or same_bits(out, ax.softmax(dense))


def test_more_than_two_strides_are_copied(rng: np.random.Generator) -> None:
    x = normal(rng, (5, 6, 7, 8, 16), BFLOAT16)[::2, ::2, ::2, ::2]
    weight = np.ones(16, ml_dtypes.bfloat16)
    assert same_bits(ax.rms_norm(x, weight), ax.rms_norm(_copied(x), weight))
    with pytest.raises(ValueError, match=r"^out: expected rows at one stride or two nested ones"):
        ax.rms_norm(_copied(x), weight, out=np.zeros((5, 6, 7, 8, 16), x.dtype)[::2, ::2, ::2, ::2])
    with pytest.raises(ValueError, match=r"^x: expected rows at one stride or two nested ones"):
        ax.fused_add_rms_norm(x, _copied(x), weight)
